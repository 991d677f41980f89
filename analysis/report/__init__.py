"""The self-contained HTML report, made from records."""
