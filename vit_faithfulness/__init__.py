"""Which map is faithful: what happens to the model's answer when patches go, and to the map when
the model or the picture changes."""
