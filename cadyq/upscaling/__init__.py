"""Enlarging photographs: which files are made of which, the estimate before the work, and the work itself."""
