"""What OUTPUT holds while a conversion runs and after it."""
