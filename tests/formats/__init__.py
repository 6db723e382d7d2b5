"""Tests of the files that are written, against who reads and writes them otherwise."""
