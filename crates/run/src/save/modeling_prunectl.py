"""Filled in with the next step."""
