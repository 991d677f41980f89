"""Records of measured cells and the pictures beside them."""
