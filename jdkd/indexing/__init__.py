"""Indexes of passages: made with a student, added to, searched, and written for other tools."""
