"""A training whose updates can be timed alone, and the floating-point operations of an update."""

from collections.abc import Sequence

import numpy as np
import torch

from dpg_cli import config
from dpg_cli.cli.build import Training, build, sizes

ROWS = 5_000  # transitions in a replay that updates are timed with


def prepare(overrides: Sequence[str]) -> Training:
    """What `dpg-train` would train with, on the CPU, its replay filled with random transitions."""
    config.register()
    few = ["device=cpu", f"buffer_size={ROWS}", "eval.episodes=1"]
    training = build(config.validate(config.compose([*few, *overrides])))
    obs_dim, action_dim = sizes(training.environments.envs.example)
    rows = (len(training.environments.seeds), ROWS)
    g = np.random.default_rng(0)
    obs, next_obs = g.normal(size=(2, *rows, obs_dim)).astype(np.float32)
    training.replay.add(obs, g.uniform(-1, 1, (*rows, action_dim)), g.normal(size=rows), next_obs, np.zeros(rows, bool))
    return training


@torch.inference_mode()
def update_once(training: Training) -> None:
    """Sample a batch and learn from it."""
    training.algorithm.update(training.replay.sample(training.algorithm.batch_size))


def update_flops(
    obs_dim: int, action_dim: int, hidden_sizes: Sequence[int], batch_size: int, num_critics: int, policy_delay: int
) -> float:
    """Floating-point operations in the matrix products of an average update of one seed.

    Counted are the products that the algorithm needs, whoever runs it; a product of `(m, k)` and `(k, n)` has 2 m k n.
    The action enters at the critics' first layer. DDPG is TD3 with one critic and no delay.
    """
    *hidden, last = hidden_sizes
    between = sum(a * b for a, b in zip(hidden, hidden_sizes[1:], strict=True))
    actor_first, critic_first = obs_dim * hidden_sizes[0], (obs_dim + action_dim) * hidden_sizes[0]
    actor, critic = actor_first + between + last * action_dim, critic_first + between + last
    targets = actor + num_critics * critic
    # Forward, gradients of the weights, and gradients of every layer's input but the first's.
    critics = num_critics * (critic + critic + (critic - critic_first))
    # The first critic is only passed through, back to the action.
    through = critic + (critic - critic_first) + action_dim * hidden_sizes[0]
    actors = actor + through + actor + (actor - actor_first)
    return 2.0 * batch_size * (targets + critics + actors / policy_delay)
