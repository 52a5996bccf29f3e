"""Environments: making them, their state, stepping many of them, and acting in them."""
