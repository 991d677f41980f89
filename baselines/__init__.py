"""Schemes to compare CADyQ with, one file each. They reach the registry through entry points."""
