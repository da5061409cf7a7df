"""Images: finding, reading and writing them."""
