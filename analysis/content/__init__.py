"""The possible gain of content-dependent bits, and the gain of the network's own choice."""
