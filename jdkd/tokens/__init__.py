"""Tokenizers, and the store of token ids that every model reads."""
