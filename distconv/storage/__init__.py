"""Places that files lie in, and the ways to read and write there."""
