"""Room of the vendors: each behind one protocol, in one file, over one HTTP core."""
