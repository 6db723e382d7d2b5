"""Tests of reading what Meta wrote."""
