"""Fetching outputs into files."""
