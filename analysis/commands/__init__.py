"""Command-line programs that print and compare records."""
