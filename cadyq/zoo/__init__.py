"""Trained weights that ship with the package. `manifest.json` says where each file comes from."""
