"""How what is shipped was made; not installed."""
