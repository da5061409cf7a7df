"""Train, fine-tune and evaluate Vision Transformers on a folder of images."""
