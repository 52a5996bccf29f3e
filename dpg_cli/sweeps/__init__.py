"""Sweeps: the record of their jobs, and how far each is."""
