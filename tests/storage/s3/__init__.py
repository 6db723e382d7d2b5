"""Tests of object stores."""
