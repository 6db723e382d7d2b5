"""What a machine with a GPU shows in one run of a few minutes: ``make gpu``."""
