#!/usr/bin/env python
"""Returns of uniformly random actions, for normalised scores: writes dpg_cli/report/data/random.json.

    python scripts/random_scores.py

100 episodes of every MuJoCo id of Gymnasium, v4 and v5, and of Pendulum-v1. Episode i is reset with seed i and draws
its actions from a generator with seed i. std is over episodes, with ddof=0.
"""

import datetime
import json
import sys
from importlib.metadata import version

import numpy as np

from dpg_cli.cli.arguments import parse, run_script
from dpg_cli.environments.make import make_env
from dpg_cli.report.published import DATA

EPISODES = 100
BOTH = (
    *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup"),
    *("InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d"),
)
IDS = [  # Pusher-v4 does not run with MuJoCo 3 and later
    *(f"{name}-{version}" for name in BOTH for version in ("v4", "v5")),
    *("Pusher-v5", "Pendulum-v1"),
]


def random_returns(env_id: str, episodes: int) -> np.ndarray:
    """Returns `(episodes,)` of actions drawn uniformly from the environment's box."""
    env = make_env(env_id)  # its actions are in [-1, 1], a linear map of the box
    returns = np.zeros(episodes)
    for episode in range(episodes):
        generator = np.random.default_rng(episode)
        env.reset(seed=episode)
        ended = False
        while not ended:
            action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            _, reward, terminated, truncated, _ = env.step(action)
            returns[episode] += float(reward)
            ended = terminated or truncated
    env.close()
    return returns


def main() -> None:
    parse(sys.argv[1:], (), required=())
    scores = {}
    for env_id in IDS:
        returns = random_returns(env_id, EPISODES)
        scores[env_id] = {"mean": returns.mean(), "std": returns.std(), "episodes": EPISODES}
        print(f"{env_id}: {returns.mean():.2f} ± {returns.std():.2f}", flush=True)
    content = {
        "command": "python scripts/random_scores.py",
        "date": datetime.date.today().isoformat(),
        "gymnasium": version("gymnasium"),
        "mujoco": version("mujoco"),
        "scores": scores,
    }
    (DATA / "random.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script("random_scores", main)
