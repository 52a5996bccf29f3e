"""Episodes of a trained policy, without exploration noise."""

import functools
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpg_cli.algorithms import Algorithm
from dpg_cli.cli.build import environment_pool, sizes
from dpg_cli.cli.device import CPU
from dpg_cli.cli.film import Film, Filmed, rendering, shown
from dpg_cli.cli.learners import META, network_sizes, new_algorithm
from dpg_cli.cli.memory import check_memory, most_bytes
from dpg_cli.cli.progress import EvaluationProgress
from dpg_cli.config import TrainConfig
from dpg_cli.environments.evaluation import Trajectories, mean_info, run_episodes
from dpg_cli.environments.group import LocalEnvs
from dpg_cli.environments.make import make_env
from dpg_cli.environments.pool import Pool
from dpg_cli.environments.probe import ignores_seed
from dpg_cli.environments.state import Env
from dpg_cli.errors import UserError
from dpg_cli.networks.layers import dense_of
from dpg_cli.precision import PRECISIONS
from dpg_cli.seeding import Purpose, integer
from dpg_cli.storage import checkpoint


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to evaluate.

    Attributes:
        checkpoint: `best`, `latest` or a step.
        episodes: how many.
        seed: of the episodes.
        video: the file of a film; None for no film.
        film_all: whether to film every episode, not only the first.
        film_seconds: the longest that the film can be.
        watch: whether to show the episodes on the display.
    """

    checkpoint: str
    episodes: int
    seed: int
    video: Path | None = None
    film_all: bool = False
    film_seconds: float = math.inf
    watch: bool = False


class Played(NamedTuple):
    """The result of an evaluation."""

    env_id: str
    step: int  # at which the policy was saved
    returns: np.ndarray  # (N,)
    lengths: np.ndarray  # (N,), steps
    info: dict[str, float]  # the numbers in `info` at the end of an episode, averaged
    frames: int  # of the film
    ignores_seed: bool  # whether the environment ignores the seed of `reset`


def play(run: Path, config: TrainConfig, settings: Settings, progress: EvaluationProgress) -> Played:
    """Run episodes with a policy of a run.

    With the same number of episodes, each has the same actions, bit for bit, whether it is filmed or not.

    Args:
        run: the run folder.
        config: of the run.
        settings: how.
        progress: says how far it is.

    Raises:
        UserError: there is no such checkpoint, or the environment cannot be created, cannot render or does not fit.
        DivergedError: an action, a reward or an observation is not finite.
    """
    pool = environment_pool(config)
    single = config.eval.episodes == 0  # only one environment may exist
    with ExitStack() as opened:
        opened.callback(pool.close)
        seed_ignored = ignores_seed(pool, single=single)
        algorithm, step = _policy(run, config, settings.checkpoint, pool)
        env_seeds = [integer(settings.seed, Purpose.TEST, episode) for episode in range(settings.episodes)]

        def run_rows(envs: LocalEnvs, rows: Sequence[int], what: str = "evaluating") -> Trajectories:
            act = functools.partial(_act, algorithm, settings.episodes, rows)
            seeds = [env_seeds[row] for row in rows]
            tell = functools.partial(progress, what=what)
            return run_episodes(act, envs, [seeds], seeds=[settings.seed], step=step, progress=tell)

        every = settings.watch or settings.film_all
        rendered = range(settings.episodes if every else 1 if settings.video is not None else 0)
        others = range(len(rendered), settings.episodes)
        played, film = [], None
        if rendered:
            if single:
                pool.close()
            if settings.video is not None:
                film = opened.enter_context(Film(settings.video, settings.film_seconds))
            doing = "showing" if film is None else "filming"
            for row in rendered:
                envs = LocalEnvs([_rendering(config, film)], "evaluation")
                with closing(envs), shown(config.env.id):
                    played.append(run_rows(envs, [row], f"{doing} episode {row}"))
        if others:
            at_once = 1 if single else len(others)
            with closing(LocalEnvs([pool() for _ in range(at_once)], "evaluation")) as envs:
                played += [run_rows(envs, others[i : i + at_once]) for i in range(0, len(others), at_once)]
    return Played(
        config.env.id,
        step,
        np.concatenate([part.returns[0] for part in played]),
        np.concatenate([part.lengths[0] for part in played]),
        mean_info(numbers for part in played for numbers in part.infos[0]),
        0 if film is None else film.frames,
        seed_ignored,
    )


def _policy(run: Path, config: TrainConfig, which: str, pool: Pool) -> tuple[Algorithm, int]:
    """An algorithm with the policy, which fits the environments, and the step that it was saved at.

    Raises:
        UserError: there is no such policy, or it does not fit, or its config names networks beyond the memory.
    """
    example = pool()
    obs_dim, action_dim = sizes(example)
    pool.keep(example)
    folder = checkpoint.find(run, which)
    tensors, step = checkpoint.policy_tensors(folder, most_bytes(config, obs_dim, action_dim))
    one = config.model_copy(update={"num_seeds": 1})
    blank = new_algorithm(one, obs_dim, action_dim, META)  # takes no memory
    needed, found = ({name: tuple(t.shape) for name, t in own.items()} for own in (blank.policy_tensors(), tensors))
    if needed != found:
        names = [f"{layer.name}.weight" for layer in dense_of(blank.actor.layers)]
        inputs, outputs = names[0], names[-1]
        if needed.keys() == found.keys() and (own := (found[inputs][-2], found[outputs][-1])) != (obs_dim, action_dim):
            raise UserError(
                f"env.id={config.env.id}: an observation has {obs_dim} numbers and an action {action_dim}; the policy "
                f"expects {own[0]} and {own[1]}"
            )
        name = next(n for n in sorted(needed.keys() | found.keys()) if needed.get(n) != found.get(n))
        shapes = ["missing" if name not in own else f"of shape {own[name]}" for own in (found, needed)]
        raise UserError(
            f"{folder}: its policy does not fit the networks of its config.yaml: {name} is {shapes[0]} in the policy, "
            f"and {shapes[1]} with {network_sizes(config)}"
        )
    check_memory(one.model_copy(update={"buffer_size": 1}), obs_dim, action_dim, CPU)  # for its critics
    algorithm = new_algorithm(one, obs_dim, action_dim, CPU)
    algorithm.load_policy(tensors)
    return algorithm, step


def _act(algorithm: Algorithm, episodes: int, rows: Sequence[int], obs: np.ndarray) -> np.ndarray:
    """Actions for some of the episodes, `(1, n, obs_dim)` to `(1, n, action_dim)`.

    A product of matrices rounds differently with another number of rows, so there are always as many as episodes.
    """
    padded = np.zeros((1, episodes, obs.shape[-1]), obs.dtype)
    padded[:, list(rows)] = obs
    return algorithm.act_to_evaluate(padded)[:, list(rows)]


def _rendering(config: TrainConfig, film: Film | None) -> Env:
    env, dtype = config.env, PRECISIONS[config.precision].observations

    def create(mode: str) -> Env:
        return make_env(env.id, {**env.kwargs, "render_mode": mode}, env.max_episode_steps, dtype, lambda _: None)

    if film is None:
        return rendering(create, env.id, "human")
    return Filmed(rendering(create, env.id, "rgb_array"), env.id, film)
