"""All disk access: atomic writes, checkpoints, shards of transitions, the run folder, and reading untrusted files."""
