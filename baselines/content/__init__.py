"""Bits and ranges that follow the content of a patch, calibrated in minutes on a trained network."""
