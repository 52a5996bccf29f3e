"""Environments: make them, save their state, step many of them, and act in them."""
