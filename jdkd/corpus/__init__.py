"""Collections: passages, queries and judgements, imported once and read memory-mapped."""
