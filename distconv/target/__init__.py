"""What Transformers reads beside the weights."""
