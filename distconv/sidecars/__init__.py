"""What stands beside weights: configurations, tokenizers, chat templates."""
