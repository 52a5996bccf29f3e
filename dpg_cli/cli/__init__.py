"""The commands: where configs become objects."""
