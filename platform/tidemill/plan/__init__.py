"""What follows from a spec by arithmetic; standard library only, pure."""
