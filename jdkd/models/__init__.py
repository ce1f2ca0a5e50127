"""Encoders in Flax, and their weights in and out."""
