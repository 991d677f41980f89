"""Bits and ranges that depend on the content of a patch, calibrated on a trained network."""
