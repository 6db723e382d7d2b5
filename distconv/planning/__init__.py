"""Where each element goes: pure, from metadata alone."""
