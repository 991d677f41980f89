"""Image quality and cost of one network on one image."""
