"""Measuring: from the options of a command to records."""
