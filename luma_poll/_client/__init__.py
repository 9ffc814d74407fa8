"""HTTP: the client of the Luma Agents API."""
