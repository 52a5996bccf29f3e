"""Build the objects of a training from a checked config."""

import contextlib
import functools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from dpg_cli.algorithms import Algorithm
from dpg_cli.capture import compile_for
from dpg_cli.cli.device import CPU, activate, choose, named_device
from dpg_cli.cli.learners import choose_threads, named, new_algorithm, new_learner
from dpg_cli.cli.memory import check_memory
from dpg_cli.cli.progress import EvaluationProgress
from dpg_cli.config import TrainConfig
from dpg_cli.environments.group import Env, EnvGroup, Kind, LocalEnvs
from dpg_cli.environments.make import FlatEnv, LogOnce, make_env, time_limit
from dpg_cli.environments.pool import Pool, Renewal
from dpg_cli.environments.probe import Findings, probe
from dpg_cli.environments.processes import EnvProcesses
from dpg_cli.environments.rollout import Environments
from dpg_cli.environments.threads import PLAIN_LOOP, EnvThreads
from dpg_cli.learner import Learner
from dpg_cli.noise import NOISES, Noise
from dpg_cli.precision import PRECISIONS
from dpg_cli.replay import Replay
from dpg_cli.seeding import Purpose, generator
from dpg_cli.storage.policy_file import metadata
from dpg_cli.trainer import Schedule

log = logging.getLogger(__name__)


class Training(NamedTuple):
    """The first arguments of `trainer.train`, in order."""

    learner: Learner
    environments: Environments
    evaluation_envs: EnvGroup | None
    noise: Noise
    schedule: Schedule

    @property
    def algorithm(self) -> Algorithm:
        """The learner's."""
        return self.learner.algorithm

    @property
    def replay(self) -> Replay:
        """The learner's."""
        return self.learner.replay

    def close(self) -> None:
        """Close every environment and end the threads or processes that step them."""
        self.environments.close()
        if self.evaluation_envs is not None:
            self.evaluation_envs.close()


class Checked(NamedTuple):
    """What is known of a training before anything is written.

    Attributes:
        obs_dim: size of an observation.
        action_dim: size of an action.
        pool: creates the environments, and holds those that were created to check.
        found: by the probe.
    """

    obs_dim: int
    action_dim: int
    pool: Pool
    found: Findings


def check(config: TrainConfig) -> Checked:
    """Check, before anything is written, that this training can start.

    Raises:
        UserError: the device, the environment or the network sizes cannot be used, or memory is too small.
    """
    if config.device != "auto":
        named_device(config.device)
    pool = environment_pool(config)
    env = pool()
    obs_dim, action_dim = sizes(env)
    small = config.model_copy(update={"num_seeds": 1, "buffer_size": 1, "device": "cpu"})
    check_memory(small, obs_dim, action_dim, CPU)  # before anything of its size is created
    new_algorithm(small, obs_dim, action_dim, CPU)
    pool.keep(env)
    single = config.num_seeds * (config.num_envs + config.eval.episodes) == 1
    progress = functools.partial(EvaluationProgress("dpg-train"), what="trying the environment")
    found = probe(config.env.id, pool, single=single, progress=progress)
    choice = choose(config, obs_dim, action_dim)
    check_memory(config, obs_dim, action_dim, choice.device)
    if config.compile:
        number = torch.ones(1, device=choice.device)
        compile_for(choice.device, lambda: number.copy_(number.sin()))  # which is not optimised away
    return Checked(obs_dim, action_dim, pool, found)


def build(
    config: TrainConfig,
    pool: Pool | None = None,
    *,
    copyable: bool = True,
    renewal: Renewal = "put back",
    processes: int = 1,
    threads: EnvThreads = PLAIN_LOOP,
) -> Training:
    """Build all objects of a training.

    Args:
        config: checked.
        pool: creates the environments; None for a new one.
        copyable: whether environments can be copied in the middle of an episode.
        renewal: what evaluations do with their environments before they start.
        processes: how many processes step the environments; 1 is this process only.
        threads: the threads that step the environments if this process does.

    Raises:
        UserError: the device, the environment or the network sizes cannot be used, or memory is too small.
    """
    seeds = range(config.seed, config.seed + config.num_seeds)
    with contextlib.ExitStack() as on_error:
        on_error.callback(threads.close)
        pool = pool or environment_pool(config)
        example = pool()
        nobodys = on_error.enter_context(contextlib.ExitStack())  # closes `example` until a group owns it
        nobodys.callback(example.close)
        obs_dim, action_dim = sizes(example)
        episode_steps = time_limit(example)
        choice = choose(config, obs_dim, action_dim)
        log.info("device: %s", choice.describe() or choice.device)
        chosen = choose_threads(config, obs_dim)
        torch.set_num_threads(chosen.number)
        log.info("threads: %d (%s)", *chosen)
        activate(choice.device)
        check_memory(config, obs_dim, action_dim, choice.device)
        size, evaluation_size = config.num_seeds * config.num_envs, config.num_seeds * config.eval.episodes
        training: EnvGroup
        evaluation: EnvGroup | None = None
        if processes > 1:
            sizes_of: dict[Kind, int] = {"training": size}
            if evaluation_size:
                sizes_of["evaluation"] = evaluation_size
            nobodys.pop_all()
            workers = EnvProcesses(pool, example, sizes_of, processes, renewal=renewal)
            on_error.callback(workers.close)
            training, evaluation = workers.groups["training"], workers.groups.get("evaluation")
        else:
            training = LocalEnvs([example, *(pool() for _ in range(size - 1))], "training", threads)
            nobodys.pop_all()
            on_error.callback(training.close)
            if envs := [pool() for _ in range(evaluation_size)]:
                evaluation = LocalEnvs(envs, "evaluation", threads, create=pool.create, renewal=renewal)
                on_error.callback(evaluation.close)
        pool.close()
        noise_name, noise_values = named(config.noise)
        noise_streams = [[generator(s, Purpose.NOISE, e) for e in range(config.num_envs)] for s in seeds]
        algorithm = new_algorithm(config, obs_dim, action_dim, choice.device)
        made = Training(
            learner=new_learner(config, algorithm, obs_dim, action_dim, captured=choice.captured),
            environments=Environments(training, seeds, copyable=copyable),
            evaluation_envs=evaluation,
            noise=NOISES[noise_name](
                **noise_values, action_dim=action_dim, generators=noise_streams, episode_steps=episode_steps
            ),
            schedule=Schedule(
                total_steps=config.total_steps,
                random_steps=config.random_steps,
                learning_starts=config.learning_starts,
                updates_per_step=config.updates_per_step,
                eval_every=config.eval.every,
                checkpoint_every=config.checkpoint.every,
                log_every=config.log.every,
            ),
        )
        on_error.pop_all()
    return made


def environment_pool(config: TrainConfig) -> Pool:
    """Creates the environments of a config."""
    env, dtype = config.env, PRECISIONS[config.precision].observations
    return Pool(functools.partial(make_env, env.id, env.kwargs, env.max_episode_steps, dtype, LogOnce()))


def sizes(env: Env) -> tuple[int, int]:
    """The sizes of an observation and of an action."""
    observed, acting = env.observation_space.shape, env.action_space.shape
    assert observed is not None
    assert acting is not None
    (obs_dim,), (action_dim,) = observed, acting
    return obs_dim, action_dim


def policy_metadata(config: TrainConfig, training: Training) -> Mapping[str, Any]:
    """What the policy files of a training say about themselves."""
    env = training.environments.envs.example
    assert isinstance(env, FlatEnv)
    own = env.env
    layers = training.algorithm.describe_policy()
    return metadata(config.env.id, own.observation_space, own.action_space, layers, config.algo["name"])
