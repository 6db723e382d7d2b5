"""Where the elements of tensors lie, and which bytes make up a file: pure, of nothing but numbers."""
