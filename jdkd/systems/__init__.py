"""Systems: everything that ranks or scores passages, under the name the config gives it.

A system is loaded or trained from labels, searches the collection and scores candidate lists.
What it computes is kept in `systems/<name>/`, as stages, so that nothing is encoded twice.
"""
