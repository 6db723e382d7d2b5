"""Requests over HTTP/1.1, tried again where that may help: what all places on other hosts are asked by."""
