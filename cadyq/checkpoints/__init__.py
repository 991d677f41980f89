"""Checkpoints: safetensors files with the configuration in the header, and published checkpoints."""
