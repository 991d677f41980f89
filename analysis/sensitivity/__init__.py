"""Sensitivity of single patches and layers to few bits, features that predict it, and the bits of a selector."""
