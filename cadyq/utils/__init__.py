"""Helpers for errors, files, locks, options and registries."""
