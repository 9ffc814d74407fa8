"""The HTTP client of the Luma Agents API."""
