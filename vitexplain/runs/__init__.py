"""What the command does: one image, many images, an evaluation."""
