"""The methods: each gives a map of which patches count, in its own sense."""
