"""Hydra's `hydra/launcher=local`: the jobs of a sweep in parallel on one machine."""
