"""How fast, in how much memory: measured against the copy of the same bytes."""
