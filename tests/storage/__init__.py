"""Tests of storages that are not this host's files."""
