"""Read a Minari data set of this machine. Nothing is downloaded, and no environment that it names is created."""

import difflib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from dpg_cli.dataset import Assembly, Dataset, InvalidDataError
from dpg_cli.environments.make import FlatEnv
from dpg_cli.errors import UserError, first_line, to_install
from dpg_cli.spaces import flat_size, flattener, scale

MODULES = ("minari", "h5py")
LISTED = 5  # names in a message


def read(name: str, env: FlatEnv, new_assembly: Callable[[int], Assembly]) -> Dataset:
    """Read a data set, with observations and actions as the wrapped environment has them.

    Args:
        name: of the data set, such as `mujoco/halfcheetah/expert-v0`.
        env: gives the observations' layout and the actions' bounds.
        new_assembly: makes an empty data set for a number of transitions.

    Raises:
        UserError: Minari is not installed, there is no such data set on this machine, or it does not fit.
    """
    if any(importlib.util.find_spec(module) is None for module in MODULES):
        raise UserError(f"dataset=minari:{name}: needs Minari; {to_install('minari')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces whose bounds float32 rounds, and of other data sets
        import minari

        known = minari.list_local_datasets()
        if name not in known:
            raise UserError(f"dataset=minari:{name}: {_unknown(name, list(known))}")
        try:
            return _read(minari.load_dataset(name, download=False), name, env, new_assembly)
        except UserError:
            raise
        except InvalidDataError as error:
            raise UserError(f"dataset=minari:{name}: {error}") from error
        except Exception as error:  # of many types: those of h5py and of Minari's own checks
            raise UserError(
                f"dataset=minari:{name}: cannot be read: {type(error).__name__}: {first_line(error)}"
            ) from error


def _read(found: Any, name: str, env: FlatEnv, new_assembly: Callable[[int], Assembly]) -> Dataset:
    observed, box = env.env.observation_space, env.env.action_space
    assert isinstance(box, spaces.Box)
    if not isinstance(found.action_space, spaces.Box):
        raise UserError(f"dataset=minari:{name}: its actions are {found.action_space}; they must be a Box of floats")
    for what, own, needed in (
        ("an observation", found.observation_space, observed),
        ("an action", found.action_space, box),
    ):
        if (size := flat_size(own)) != (wanted := flat_size(needed)):
            env_id = env.spec.id if env.spec is not None else "the environment"
            raise UserError(f"dataset=minari:{name}: {what} has {size} numbers, and {wanted} in {env_id}")
    dtype = env.observation_space.dtype
    assert dtype is not None
    flatten, (low, half_range) = flattener(observed, dtype), scale(box)
    count = int(found.total_steps)
    if count == 0:
        raise UserError(f"dataset=minari:{name}: has no transitions")
    assembly = new_assembly(count)
    for episode in found.iterate_episodes():
        if not len(episode.rewards):
            continue
        obs = flatten(episode.observations)
        action = np.asarray(episode.actions, np.float64).reshape(len(obs) - 1, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(half_range > 0, (action - low) / half_range - 1.0, 0.0)
        places = np.arange(assembly.filled, assembly.filled + len(action))
        if places[-1] >= count:
            raise InvalidDataError(f"has more than the {count:,} transitions that it names")
        assembly.begins(int(places[0]), whole=True)
        ends = (np.asarray(flags, np.bool_) for flags in (episode.terminations, episode.truncations))
        reward = np.asarray(episode.rewards, np.float64)
        assembly.put(places, obs[:-1], assembly.clip(scaled), reward, obs[1:], *ends)
    if assembly.filled != count:
        raise InvalidDataError(f"has {assembly.filled:,} transitions, and names {count:,}")
    env_ids = [] if found.env_spec is None else [str(found.env_spec.id)]
    return assembly.finished([f"minari:{name}"], env_ids)


def _unknown(name: str, known: list[str]) -> str:
    """The message about a name that no data set of this machine has."""
    unknown = "no data set of that name is on this machine"
    if not known:
        return f"{unknown}; minari download {name} would fetch it"
    close = difflib.get_close_matches(name, known, n=LISTED, cutoff=0.3) or known[:LISTED]
    return f"{unknown}; there are {', '.join(close)}"
