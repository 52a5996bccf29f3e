"""A training whose updates can be timed alone, and the floating-point operations of an update."""

from collections.abc import Sequence

import numpy as np

from dpg_cli import config
from dpg_cli.cli.build import Training, build, sizes

AT_ONCE = 100_000  # transitions that are made at once
ROWS = 5_000  # transitions in a replay that updates are timed with


def prepare(overrides: Sequence[str], rows: int = ROWS, *, prepared: bool = True) -> Training:
    """What `dpg-train` would train with, on the CPU, its replay filled with random transitions.

    Without `prepared`, the learner is left to be prepared and the replay to be filled.
    """
    config.register()
    few = ["device=cpu", f"buffer_size={rows}", f"total_steps={rows}", "eval.episodes=1"]
    training = build(config.validate(config.compose([*few, *overrides])))
    if prepared:
        training.learner.prepare()
        fill(training, rows)
    return training


def fill(training: Training, rows: int) -> None:
    """Store random transitions."""
    obs_dim, action_dim = sizes(training.environments.envs.example)
    g, members, made = np.random.default_rng(0), len(training.environments.seeds), 0
    while made < rows:
        part = (members, min(AT_ONCE, rows - made))
        obs, next_obs = g.normal(size=(2, *part, obs_dim)).astype(np.float32)
        action, never = g.uniform(-1, 1, (*part, action_dim)), np.zeros(part, bool)
        training.replay.add(obs, action, g.normal(size=part), next_obs, never, never)
        made += part[1]


def update_once(training: Training) -> None:
    """Sample a batch and learn from it."""
    training.learner.update_once()


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
