"""What bytes on disk mean."""
