"""What a scheme is, how it is applied to a network, and CADyQ itself."""
