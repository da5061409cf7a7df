"""Models ready to explain, with their input transform and the names of their classes."""
