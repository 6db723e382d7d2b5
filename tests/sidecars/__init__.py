"""Tests of what is made to stand beside Meta's shards."""
