"""Outputs into files."""
