"""Other people's weights: files of many layouts, as weights of one of timm's models."""
