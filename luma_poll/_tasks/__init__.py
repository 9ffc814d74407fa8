"""The parts that any concurrent program needs."""
