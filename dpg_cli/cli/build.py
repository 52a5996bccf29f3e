"""Build the objects of a training from a checked config."""

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dpg_cli.algorithms import Algorithm
from dpg_cli.bookkeeping import Strides
from dpg_cli.capture import compile_for
from dpg_cli.cli.dataset import check_dataset, read_dataset
from dpg_cli.cli.device import CPU, activate, choose, named_device
from dpg_cli.cli.learners import choose_threads, named, new_algorithm, new_learner
from dpg_cli.cli.memory import check_memory
from dpg_cli.cli.progress import EvaluationProgress
from dpg_cli.config import TrainConfig
from dpg_cli.dataset import Dataset
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


class OfflineTraining(NamedTuple):
    """The first arguments of `offline.train_offline`, in order."""

    learner: Learner
    evaluation_envs: EnvGroup
    strides: Strides
    digest: str
    seeds: Sequence[int]

    @property
    def algorithm(self) -> Algorithm:
        """The learner's."""
        return self.learner.algorithm

    @property
    def example(self) -> Env:
        """One of the environments."""
        return self.evaluation_envs.example

    def close(self) -> None:
        """Close every environment and end the threads or processes that step them."""
        self.evaluation_envs.close()


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

    @property
    def example(self) -> Env:
        """One of the environments."""
        return self.environments.envs.example

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
        dataset: to learn from offline; None for a run that learns online.
    """

    obs_dim: int
    action_dim: int
    pool: Pool
    found: Findings
    dataset: Dataset | None = None

    @property
    def transitions(self) -> int:
        """Of the data set; 0 without one."""
        return 0 if self.dataset is None else len(self.dataset)


def check(config: TrainConfig) -> Checked:
    """Check, before anything is written, that this training can start.

    Raises:
        UserError: the device, the environment, the network sizes or the data set cannot be used, or memory is too
            small.
    """
    check_dataset(config)
    if config.device != "auto":
        named_device(config.device)
    pool = environment_pool(config)
    env = pool()
    obs_dim, action_dim = sizes(env)
    small = config.model_copy(update={"num_seeds": 1, "buffer_size": 1, "device": "cpu"})
    check_memory(small, obs_dim, action_dim, CPU)  # before anything of its size is created
    new_algorithm(small, obs_dim, action_dim, CPU)
    dataset = read_dataset(config, env)
    pool.keep(env)
    single = sum(_group_sizes(config).values()) == 1
    progress = functools.partial(EvaluationProgress("dpg-train"), what="trying the environment")
    found = probe(config.env.id, pool, single=single, progress=progress)
    transitions = 0 if dataset is None else len(dataset)
    choice = choose(config, obs_dim, action_dim, transitions)
    check_memory(config, obs_dim, action_dim, choice.device, transitions)
    if config.compile:
        check_compiler(choice.device)
    return Checked(obs_dim, action_dim, pool, found, dataset)


def check_compiler(device: torch.device) -> None:
    """Check that `compile=true` can be used, by compiling one operation.

    Raises:
        CompileError: it cannot.
    """
    number = torch.ones(1, device=device)
    compile_for(device, lambda: number.copy_(number.sin()))  # which is not optimised away


def build(
    config: TrainConfig,
    pool: Pool | None = None,
    *,
    copyable: bool = True,
    renewal: Renewal = "put back",
    processes: int = 1,
    threads: EnvThreads = PLAIN_LOOP,
    dataset: Dataset | None = None,
) -> Training | OfflineTraining:
    """Build all objects of a training.

    Args:
        config: checked.
        pool: creates the environments; None for a new one.
        copyable: whether environments can be copied in the middle of an episode.
        renewal: what evaluations do with their environments before they start.
        processes: how many processes step the environments; 1 is this process only.
        threads: the threads that step the environments if this process does.
        dataset: to learn from offline; None to learn online.

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
        transitions = 0 if dataset is None else len(dataset)
        choice = choose(config, obs_dim, action_dim, transitions)
        log.info("device: %s", choice.describe() or choice.device)
        chosen = choose_threads(config, obs_dim)
        torch.set_num_threads(chosen.number)
        log.info("threads: %d (%s)", *chosen)
        activate(choice.device)
        check_memory(config, obs_dim, action_dim, choice.device, transitions)
        groups: dict[Kind, EnvGroup] = {}
        if processes > 1:
            nobodys.pop_all()
            workers = EnvProcesses(pool, example, _group_sizes(config), processes, renewal=renewal)
            on_error.callback(workers.close)
            groups |= workers.groups
        else:
            for kind, size in _group_sizes(config).items():
                envs = [pool() if groups or number else example for number in range(size)]
                groups[kind] = LocalEnvs(envs, kind, threads, create=pool.create, renewal=renewal)
                nobodys.pop_all()
                on_error.callback(groups[kind].close)
        pool.close()
        algorithm = new_algorithm(config, obs_dim, action_dim, choice.device)
        learner = new_learner(config, algorithm, obs_dim, action_dim, dataset, captured=choice.captured)
        strides = {
            "total_steps": config.total_steps,
            "eval_every": config.eval.every,
            "checkpoint_every": config.checkpoint.every,
            "log_every": config.log.every,
        }
        if dataset is not None:
            on_error.pop_all()
            return OfflineTraining(learner, groups["evaluation"], Strides(**strides), dataset.digest, seeds)
        noise_name, noise_values = named(config.noise)
        noise_streams = [[generator(s, Purpose.NOISE, e) for e in range(config.num_envs)] for s in seeds]
        made = Training(
            learner=learner,
            environments=Environments(groups["training"], seeds, copyable=copyable),
            evaluation_envs=groups.get("evaluation"),
            noise=NOISES[noise_name](
                **noise_values, action_dim=action_dim, generators=noise_streams, episode_steps=episode_steps
            ),
            schedule=Schedule(
                **strides,
                random_steps=config.random_steps,
                learning_starts=config.learning_starts,
                updates_per_step=config.updates_per_step,
            ),
        )
        on_error.pop_all()
    return made


def _group_sizes(config: TrainConfig) -> dict[Kind, int]:
    """How many environments of each kind there are; an offline run has none to train in."""
    sizes: dict[Kind, int] = {
        "training": 0 if config.offline else config.num_seeds * config.num_envs,
        "evaluation": config.num_seeds * config.eval.episodes,
    }
    return {kind: size for kind, size in sizes.items() if size}


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


def policy_metadata(config: TrainConfig, training: Training | OfflineTraining) -> Mapping[str, Any]:
    """What the policy files of a training say about themselves."""
    env = training.example
    assert isinstance(env, FlatEnv)
    own = env.env
    layers = training.algorithm.describe_policy()
    return metadata(config.env.id, own.observation_space, own.action_space, layers, config.algo["name"])
