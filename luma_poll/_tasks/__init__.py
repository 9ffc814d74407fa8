"""Parts that any concurrent program needs."""
