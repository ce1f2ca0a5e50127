"""Candidate lists and dark examples, and the batches that training reads them in."""
