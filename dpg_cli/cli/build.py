"""Build the objects of a training from a checked config."""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

from dpg_cli.algorithms import Algorithm
from dpg_cli.capture import compile_for
from dpg_cli.cli.device import activate, choose, named_device
from dpg_cli.cli.learners import choose_threads, named, new_algorithm, new_learner
from dpg_cli.cli.memory import check_memory
from dpg_cli.config import TrainConfig
from dpg_cli.environments.group import Env, EnvGroup, Kind, LocalEnvs
from dpg_cli.environments.make import LogOnce, make_env
from dpg_cli.environments.processes import EnvProcesses
from dpg_cli.environments.rollout import Environments
from dpg_cli.environments.threads import PLAIN_LOOP, EnvThreads
from dpg_cli.learner import Learner
from dpg_cli.noise import NOISES, Noise
from dpg_cli.precision import PRECISIONS
from dpg_cli.replay import Replay
from dpg_cli.seeding import Purpose, generator
from dpg_cli.trainer import Schedule

log = logging.getLogger(__name__)


class Training(NamedTuple):
    """The first arguments of `trainer.train`, in order."""

    learner: Learner
    environments: Environments
    evaluation_envs: EnvGroup
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
        self.evaluation_envs.close()


def check(config: TrainConfig) -> tuple[int, int]:
    """Check, before anything is written, that this training can start.

    Returns:
        The sizes of an observation and of an action.

    Raises:
        UserError: the device, the environment or the network sizes cannot be used, or memory is too small.
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


def build(
    config: TrainConfig, *, copyable: bool = True, processes: int = 1, threads: EnvThreads = PLAIN_LOOP
) -> Training:
    """Build all objects of a training.

    Args:
        config: checked.
        copyable: whether environments can be copied in the middle of an episode.
        processes: how many processes step the environments; 1 is this process only.
        threads: the threads that step the environments if this process does.

    Raises:
        UserError: the device, the environment or the network sizes cannot be used, or memory is too small.
    """
    seeds = range(config.seed, config.seed + config.num_seeds)
    with contextlib.ExitStack() as on_error:
        on_error.callback(threads.close)
        new_env = environment_maker(config)
        example = new_env()
        nobodys = on_error.enter_context(contextlib.ExitStack())  # closes `example` until a group owns it
        nobodys.callback(example.close)
        observed, acting = example.observation_space.shape, example.action_space.shape
        assert observed is not None
        assert acting is not None
        (obs_dim,), (action_dim,) = observed, acting
        choice = choose(config, obs_dim, action_dim)
        log.info("device: %s", choice.describe() or choice.device)
        chosen = choose_threads(config, obs_dim)
        torch.set_num_threads(chosen.number)
        log.info("threads: %d (%s)", *chosen)
        activate(choice.device)
        check_memory(config, obs_dim, action_dim, choice.device)
        size, evaluation_size = config.num_seeds * config.num_envs, config.num_seeds * config.eval.episodes
        training: EnvGroup
        evaluation: EnvGroup
        if processes > 1:
            sizes_of: dict[Kind, int] = {"training": size, "evaluation": evaluation_size}
            nobodys.pop_all()
            workers = EnvProcesses(new_env, example, sizes_of, processes)
            on_error.callback(workers.close)
            training, evaluation = workers.groups["training"], workers.groups["evaluation"]
        else:
            training = LocalEnvs([example, *(new_env() for _ in range(size - 1))], "training", threads)
            nobodys.pop_all()
            on_error.callback(training.close)
            evaluation = LocalEnvs([new_env() for _ in range(evaluation_size)], "evaluation", threads)
            on_error.callback(evaluation.close)
        noise_name, noise_values = named(config.noise)
        noise_streams = [[generator(s, Purpose.NOISE, e) for e in range(config.num_envs)] for s in seeds]
        algorithm = new_algorithm(config, obs_dim, action_dim, choice.device)
        made = Training(
            learner=new_learner(config, algorithm, obs_dim, action_dim, captured=choice.captured),
            environments=Environments(training, seeds, copyable=copyable),
            evaluation_envs=evaluation,
            noise=NOISES[noise_name](**noise_values, action_dim=action_dim, generators=noise_streams),
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


def environment_maker(config: TrainConfig) -> Callable[[], Env]:
    """A function that makes one environment of a config. It can be pickled, for worker processes."""
    env, dtype = config.env, PRECISIONS[config.precision].observations
    return functools.partial(make_env, env.id, env.kwargs, env.max_episode_steps, dtype, LogOnce())


def sizes(environments: Environments) -> tuple[int, int]:
    """The sizes of an observation and of an action."""
    return environments.obs.shape[-1], environments.action_dim
