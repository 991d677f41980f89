"""Upscaling of photographs: input and output files, time estimate, and tile-wise processing."""
