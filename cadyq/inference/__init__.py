"""Running a trained network over whole images: tiles, batches of tiles, bit maps."""
