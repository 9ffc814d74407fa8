"""The same loop for programs without one: it runs in a thread of its own."""
