"""The commands, which build objects from configs."""
