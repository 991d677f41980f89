"""The command-line programs. Libraries never import from here."""
