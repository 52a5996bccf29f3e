"""Notes that a run prints at its start: settings that are valid but probably not intended, and facts to know."""

import math

from dpg_cli.cli.build import OfflineTraining, Training, sizes
from dpg_cli.cli.disk import disk_note
from dpg_cli.config import TrainConfig
from dpg_cli.config.defaults import defaults
from dpg_cli.environments.make import has_time_limit
from dpg_cli.environments.probe import Findings

USUAL_NOISE = "gaussian"  # in train.yaml's list of defaults
LARGE_SHARE = 1 / 3  # of all simulator steps, from which on evaluations are mentioned
SEED_IGNORED = "reset(seed=...) does not determine the episode, so two runs with the same seed differ"


def notes(config: TrainConfig, training: Training | OfflineTraining, found: Findings) -> list[str]:
    """The notes of a run, one line each.

    Args:
        config: of the run.
        training: the objects of the run.
        found: by the probe.
    """
    keys = ("env_processes", "env_threads")
    given = [f"{key}={value}" for key in keys if (value := getattr(config, key)) not in ("auto", 1)]
    lines = _about_state(config.env.id, found)
    if given and found.thread_problem is not None:
        lines.append(f"{', '.join(given)}: {config.env.id} is stepped in a plain loop instead: {found.thread_problem}")
    lines += _without_effect(config)
    example = training.example
    if not has_time_limit(example):
        lines.append(f"{config.env.id} has no time limit of its own; env.max_episode_steps=1000 would set one")
    elif not config.offline and example.spec is not None and example.spec.max_episode_steps is not None:
        lines += _about_evaluations(config, example.spec.max_episode_steps)
    if (note := disk_note(config, *sizes(example))) is not None:
        lines.append(note)
    return lines + _about_updates(config) + _about_values(config)


def _about_values(config: TrainConfig) -> list[str]:
    """A line if the range of values is the default, which suits few environments."""
    default = defaults("algo", config.algo["name"])
    keys = ("v_min", "v_max")
    if not all(key in config.algo and config.algo[key] == default.get(f"algo.{key}") for key in keys):
        return []
    given = " and ".join(f"algo.{key}={config.algo[key]:g}" for key in keys)
    return [f"{given} suit rewards in [0, 1]; set them for {config.env.id} (docs/algorithms/d4pg.md)"]


def _about_updates(config: TrainConfig) -> list[str]:
    """A line if there are no updates, or too few for the targets ever to change."""
    first = 0 if config.offline else max(config.learning_starts, config.algo["batch_size"] - 1)
    if first >= config.total_steps:
        return [f"nothing will be learned: updates start after step {first:,}, total_steps is {config.total_steps:,}"]
    updates = math.floor((config.total_steps - first) * (1 if config.offline else config.updates_per_step))
    every = config.algo["target_copy_every"]
    if every is None or every <= updates:
        return []
    return [f"algo.target_copy_every={every}: the targets never change, since this run makes {updates:,} updates"]


def _without_effect(config: TrainConfig) -> list[str]:
    """A line for each key that is not at its default and that another one makes useless."""
    algo, useless = config.algo, dict[str, str]()
    if config.network["name"] != "mlp":
        useless |= dict.fromkeys(("critic_action_layer", "hidden_sizes"), f"network={config.network['name']}")
    if (every := algo["target_copy_every"]) is not None:
        useless["tau"] = f"algo.target_copy_every={every}"
    if "bc_weight" in algo and not config.offline:
        useless["bc_weight"] = "dataset=null"
    if algo.get("policy_checkpoints") is False:
        of_checkpoints = ("checkpoint_episodes", "checkpoint_start", "checkpoint_reset")
        useless |= dict.fromkeys(of_checkpoints, "algo.policy_checkpoints=false")
    default = defaults("algo", algo["name"])
    lines = []
    for key, other in useless.items():
        value = algo[key]
        if (tuple(value) if isinstance(value, list) else value) != default.get(f"algo.{key}"):
            lines.append(f"algo.{key}={value} has no effect with {other}")
    final, usual = config.noise.get("final_scale"), defaults("noise", config.noise["name"]).get("noise.final_scale")
    if final != usual and config.noise.get("decay_steps") is None and not config.offline:
        lines.append(f"noise.final_scale={final} has no effect with noise.decay_steps=null")
    if config.offline and (set_in_vain := _of_acting(config)):
        lines.append(f"offline, {', '.join(set_in_vain)} {'has' if len(set_in_vain) == 1 else 'have'} no effect")
    return lines


def _of_acting(config: TrainConfig) -> list[str]:
    """The keys that are not at their defaults and concern acting and storing, which an offline run does not do."""
    own, whole = config.model_dump(), defaults("", "train")
    usual = {"random_steps": config.env.random_steps, "learning_starts": config.random_steps}
    keys = ("num_envs", "random_steps", "learning_starts", "updates_per_step", "buffer_size", "share_next_obs")
    found = [f"{key}={str(own[key]).lower()}" for key in keys if own[key] != usual.get(key, whole.get(key))]
    if not config.checkpoint.replay:
        found.append("checkpoint.replay=false")
    name = config.noise["name"]
    if name != USUAL_NOISE:
        found.append(f"noise={name}")
    of_noise = defaults("noise", name)
    return found + [
        f"noise.{key}={value}" for key, value in config.noise.items() if value != of_noise.get(f"noise.{key}", value)
    ]


def _about_state(env_id: str, found: Findings) -> list[str]:
    lines = []
    if found.copy_problem is not None:
        lines.append(
            f"{env_id}: its state cannot be saved in the middle of an episode ({found.copy_problem}). If this run is "
            "resumed, it starts a new episode there and is not the same bit for bit"
        )
        if found.renewal == "keep":
            lines.append(
                f"{env_id}: creating it takes {found.make_seconds:.1f} s, so all evaluations use the same "
                "environments; what these keep between episodes is lost when the run is resumed"
            )
    generators = [name for name in found.changes if name.endswith("generator")]
    attributes = [name for name in found.changes if name not in generators]
    if attributes:
        lines.append(
            f"{env_id}: its steps or resets change {', '.join(attributes)}, which all environments of a process share. "
            "A resumed run starts with their initial values; the seeds of num_seeds and the jobs of a sweep in one "
            "process affect each other"
        )
    if generators:
        lines.append(
            f"{env_id}: its steps or resets use {', '.join(generators)}, which all environments of a process share: "
            "the seeds of num_seeds affect each other"
        )
    if found.ignores_seed:
        lines.append(f"{env_id}: {SEED_IGNORED}")
    if found.statistics is not None:
        lines.append(
            f"{env_id}: the statistics of its wrapper {found.statistics} are not saved with the policy, which is "
            "worthless without them; use algo.normalize_obs=true instead of the wrapper"
        )
    return lines


def _about_evaluations(config: TrainConfig, time_limit: int) -> list[str]:
    """A line if evaluations take a large share of the simulator's steps."""
    evaluations = 1 + -(-config.total_steps // config.eval.every)

    def steps(episodes: int) -> int:
        return evaluations * episodes * time_limit

    def share(episodes: int) -> float:
        return steps(episodes) / (steps(episodes) + config.total_steps)

    episodes = config.eval.episodes
    if share(episodes) <= LARGE_SHARE:
        return []
    fewer = max(1, episodes // 3)
    remedy = f"; eval.episodes={fewer} would make it {share(fewer):.0%}" if fewer < episodes else ""
    return [f"evaluations will take up to {share(episodes):.0%} of all simulator steps{remedy}"]
