"""Meta's side: a shard as torch.save writes it, made without torch."""
