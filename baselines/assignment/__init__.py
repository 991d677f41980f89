"""Bits that are assigned ahead of time: the base class of such schemes, and the search for the best ones."""
