"""The record of submissions on disk."""
