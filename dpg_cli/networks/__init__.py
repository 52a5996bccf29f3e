"""Actors and critics of many members at once."""

from dpg_cli.networks.actor_critic import Actor, Critic, Gradient, Network, Numbers, copy_tensors
from dpg_cli.networks.architectures import ARCHITECTURES, Architecture, Mlp, SimBa
from dpg_cli.networks.normalizer import Normalizer

__all__ = [
    "ARCHITECTURES",
    "Actor",
    "Architecture",
    "Critic",
    "Gradient",
    "Mlp",
    "Network",
    "Normalizer",
    "Numbers",
    "SimBa",
    "copy_tensors",
]
