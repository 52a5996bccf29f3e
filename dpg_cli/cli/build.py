"""From a checked config to the objects of a training."""

import functools
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from dpg_cli.algorithms import Algorithm
from dpg_cli.cli.device import activate, choose, named_device
from dpg_cli.cli.learners import choose_threads, named, new_algorithm, new_learner
from dpg_cli.cli.memory import check_memory
from dpg_cli.config import TrainConfig
from dpg_cli.env_threads import EnvThreads
from dpg_cli.envs import make_env
from dpg_cli.errors import UserError
from dpg_cli.learner import Learner, compile_for
from dpg_cli.noise import NOISES, Noise
from dpg_cli.precision import PRECISIONS
from dpg_cli.replay import Replay
from dpg_cli.rollout import Env, Environments
from dpg_cli.seeding import Purpose, generator

log = logging.getLogger(__name__)

MIN_ENV_CORES = 4  # with fewer, threads that share Python's lock gain little
MAX_AUTO_ENV_THREADS = 8  # Python's part of the steps, which they make one at a time, leaves no gain for more


class Training(NamedTuple):
    """What `trainer.train` works with."""

    learner: Learner
    environments: Environments
    evaluation_envs: list[list[Env]]
    noise: Noise

    @property
    def algorithm(self) -> Algorithm:
        """The learner's."""
        return self.learner.algorithm

    @property
    def replay(self) -> Replay:
        """The learner's."""
        return self.learner.replay

    def close(self) -> None:
        """End the threads and close every environment."""
        if not self.environments.threads.close():
            return  # an environment that hangs is still being stepped
        self.environments.close()
        for member in self.evaluation_envs:
            for env in member:
                env.close()


def check(config: TrainConfig) -> tuple[int, int]:
    """Find, before anything is written, what would keep this training from starting.

    Returns:
        Sizes of an observation and of an action.

    Raises:
        UserError: device, environment, network sizes or memory.
    """
    one_episode = config.eval.model_copy(update={"episodes": 1})
    small = {"num_seeds": 1, "num_envs": 1, "buffer_size": 1, "eval": one_episode, "device": "cpu"}
    if config.device != "auto":
        named_device(config.device)
    training = build(config.model_copy(update=small))
    training.close()
    obs_dim, action_dim = sizes(training.environments)
    choice = choose(config, obs_dim, action_dim)
    check_memory(config, obs_dim, action_dim, choice.device)
    if config.compile and choice.captured:
        number = torch.ones(1, device=choice.device)
        compile_for(choice.device, lambda: number.mul_(1))
    return obs_dim, action_dim


def build(config: TrainConfig) -> Training:
    """Make everything.

    Raises:
        UserError: device, environment, network sizes or memory.
    """
    seeds = range(config.seed, config.seed + config.num_seeds)
    new_env = environment_maker(config)
    environments = Environments([[new_env() for _ in range(config.num_envs)] for _ in seeds], seeds)
    obs_dim, action_dim = sizes(environments)
    choice = choose(config, obs_dim, action_dim)
    log.info("device: %s", choice.describe() or choice.device)
    torch.set_num_threads(threads := choose_threads(config, obs_dim))
    log.info("threads: %d", threads)
    activate(choice.device)
    try:
        check_memory(config, obs_dim, action_dim, choice.device)
    except UserError:
        environments.close()
        raise
    evaluation_envs = [[new_env() for _ in range(config.eval.episodes)] for _ in seeds]
    noise_name, noise_values = named(config.noise)
    noise_streams = [[generator(s, Purpose.NOISE, e) for e in range(config.num_envs)] for s in seeds]
    algorithm = new_algorithm(config, obs_dim, action_dim, choice.device)
    return Training(
        learner=new_learner(config, algorithm, obs_dim, action_dim, captured=choice.captured),
        environments=environments,
        evaluation_envs=evaluation_envs,
        noise=NOISES[noise_name](**noise_values, action_dim=action_dim, generators=noise_streams),
    )


def environment_maker(config: TrainConfig) -> Callable[[], Env]:
    """What makes one environment of a config."""
    env = config.env
    log_once = functools.cache(log.info)  # a dozen environments warn of the same
    return functools.partial(
        make_env, env.id, env.kwargs, env.max_episode_steps, PRECISIONS[config.precision].observations, log_once
    )


def sizes(environments: Environments) -> tuple[int, int]:
    """Sizes of an observation and of an action."""
    return environments.obs.shape[-1], environments.action_dim


def choose_env_threads(config: TrainConfig) -> int:
    """Threads for the environments, at most one each; `auto` is one with fewer than `MIN_ENV_CORES` cores."""
    environments = config.num_seeds * max(config.num_envs, config.eval.episodes)
    if config.env_threads != "auto":
        return min(config.env_threads, environments)
    cores = len(os.sched_getaffinity(0))
    return min(cores, MAX_AUTO_ENV_THREADS, environments) if cores >= MIN_ENV_CORES else 1


def make_env_threads(config: TrainConfig, problem: str | None) -> EnvThreads:
    """The threads of a run; `auto` measures whether they are faster than a plain loop.

    Args:
        config: of the run.
        problem: why the environment is not thread-safe; None if it is.
    """
    count = choose_env_threads(config)
    if count > 1 and problem is not None:
        log.info("environments are stepped one after another: %s", problem)
        count = 1
    return EnvThreads(count, measured=config.env_threads == "auto")
