"""Tests of distconv; they mirror its modules."""
