"""Checkpoints of ``torch.distributed.checkpoint``: what its files mean, read without torch."""
