"""Submission of generations, as many at once as the account allows."""
