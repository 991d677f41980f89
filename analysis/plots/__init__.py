"""Figures, made from records."""
