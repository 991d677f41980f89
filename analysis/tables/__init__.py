"""Tables, comparisons and intervals, made from records."""
