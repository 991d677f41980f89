"""Saving and loading networks (safetensors, configuration in the header), and importing published checkpoints."""
