"""What is wanted: each family's tensors, their names on both sides and how they are cut."""
