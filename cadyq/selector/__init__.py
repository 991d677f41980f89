"""The CADyQ method: its bit selector, and the scheme that uses it."""
