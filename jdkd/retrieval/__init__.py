"""Encoding, indexing, searching and measuring."""
