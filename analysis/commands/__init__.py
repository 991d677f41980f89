"""The command-line programs that show what records hold."""
