"""Systems: everything that ranks or scores passages, under the name that the config gives it.

A system is loaded or trained from labels, searches the collection and scores candidate lists. Its
results are stages in `systems/<name>/`, so nothing is encoded twice.
"""
