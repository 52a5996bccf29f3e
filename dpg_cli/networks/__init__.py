"""Actors and critics of many members at once."""

from dpg_cli.networks.actor_critic import Actor, Critic, Network
from dpg_cli.networks.normalizer import Normalizer

__all__ = ["Actor", "Critic", "Network", "Normalizer"]
