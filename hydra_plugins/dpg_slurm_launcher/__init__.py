"""Hydra's `hydra/launcher=slurm`: the jobs of a sweep as SLURM jobs."""
