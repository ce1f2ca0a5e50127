"""Serves a student over HTTP: search, embeddings, and a page to try them."""
