"""Bits that are set before the forward: the base class of such schemes, and the search for the best bits."""
