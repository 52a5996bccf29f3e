"""Hydra's `hydra/launcher=ray`: the jobs of a sweep on a Ray cluster."""
