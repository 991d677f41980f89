"""Trained networks on whole images: tiles, batches of tiles, bit maps."""
