"""What a run leaves for people: events, a live line, a summary, a curve."""
