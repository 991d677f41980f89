"""The measurement harness: metrics, cost, records, tables, plots and report."""
