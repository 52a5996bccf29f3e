"""Make an environment of any Gymnasium id, with flat observations and actions in [-1, 1]."""

import contextlib
import difflib
import importlib
import importlib.util
import io
import itertools
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dpg_cli.errors import UserError, to_install
from dpg_cli.spaces import own_actions, scale

log = logging.getLogger(__name__)

UNSTABLE = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")  # MuJoCo then resets the simulation by itself
MUJOCO_UNBOUNDED = 1e10  # mjMAXVAL, dm_control's bound if the model has none


class Suite(NamedTuple):
    """Environments that an extra of this package installs."""

    name: str
    extra: str  # with a hyphen, since pip before 23.3 does not read dm_control as dm-control
    modules: tuple[str, ...]  # what must be installed; importing the first registers the ids


BOX2D = Suite("Box2D", "box2d", ("Box2D", "pygame"))  # Gymnasium's own ids
REGISTERED_ELSEWHERE = {  # by a regular expression for the start of the ids
    "dm_control/": Suite("dm_control", "dm-control", ("shimmy", "dm_control")),
    "(Fetch|Hand|AdroitHand|AntMaze|PointMaze|FrankaKitchen)": Suite(
        "Gymnasium-Robotics", "robotics", ("gymnasium_robotics",)
    ),
}


class UnknownIdError(UserError):
    """No environment of an id is registered."""


class LogOnce:
    """Logs each message once. Its memory of logged messages is pickled with it."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __call__(self, message: str) -> None:
        """Log a message, unless it was logged before."""
        if message not in self._logged:
            self._logged.add(message)
            log.info(message)


class FlatEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with flat observations and actions in [-1, 1]^n, whatever its own box of actions.

    One wrapper replaces several of Gymnasium's, because each costs time at every step. Observations are converted
    directly to `dtype`, not first to their space's type. They may share the environment's memory until the next step.

    Args:
        env: its observations can be flattened, its actions are a bounded box.
        dtype: of the observations.
    """

    def __init__(self, env: gym.Env[Any, Any], dtype: type[np.floating[Any]]):
        super().__init__(env)
        self._observed, self._dtype = env.observation_space, dtype
        flat = spaces.utils.flatten_space(self._observed)
        assert isinstance(flat, spaces.Box)
        self.observation_space = spaces.Box(flat.low.astype(dtype), flat.high.astype(dtype), dtype=dtype)
        box = env.action_space
        assert isinstance(box, spaces.Box)
        self._box = box
        self._low, self._half_range = scale(box)
        self.action_space = spaces.Box(-1.0, 1.0, (self._low.size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Make one step with an action in [-1, 1]^n."""
        obs, reward, terminated, truncated, info = self.env.step(self.own_actions(action))
        return self._flat(obs), reward, terminated, truncated, info

    def step_own(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Make one step with an action in the environment's own box."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._flat(obs), reward, terminated, truncated, info

    def own_actions(self, action: np.ndarray) -> np.ndarray:
        """Map `(..., n)` from [-1, 1]^n to the box, `(..., *box)`."""
        return own_actions(action, self._low, self._half_range, self._box)

    def _flat(self, obs: Any) -> np.ndarray:
        if not isinstance(self._observed, spaces.Box):
            obs = spaces.flatten(self._observed, obs)
        return np.asarray(obs, self._dtype).ravel()


def make_env(
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    dtype: type[np.floating[Any]] = np.float32,
    on_warning: Callable[[str], object] = log.info,
) -> gym.Env[np.ndarray, np.ndarray]:
    """Make one environment.

    Args:
        env_id: any registered id, or `module:Id` for a module that registers it.
        kwargs: passed to `gymnasium.make`.
        max_episode_steps: time limit in steps; None keeps the id's own.
        dtype: of the observations.
        on_warning: called with each warning of the environment, in one line.

    Returns:
        An environment with a flat Box of observations and the actions [-1, 1]^n.

    Raises:
        UserError: the id is unknown, its arguments or dependencies are wrong, or its spaces are not those of
            continuous control from states.
    """
    _find(env_id, on_warning)
    if (mujoco := sys.modules.get("mujoco")) is not None:
        # Otherwise MuJoCo's warnings go to stderr and into MUJOCO_LOG.TXT in the working directory.
        mujoco.set_mju_user_warning(lambda message: on_warning(f"mujoco: {message}"))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            env = gym.make(
                env_id,
                max_episode_steps=max_episode_steps,
                disable_env_checker=True,
                **dict(kwargs or {}),
            )
            try:
                _check_action_space(env_id, env.action_space)
                _check_observation_space(env_id, env.observation_space)
            except UserError:
                env.close()
                raise
            warnings.simplefilter("ignore")  # such as bounds that float32 rounds
            flat = FlatEnv(env, dtype)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"env.id={env_id}: cannot be created: {_one_line(error)}{_versions_hint(env_id)}") from error
    for warning in caught:
        on_warning(_one_line(warning.message))
    return flat


def newer_version(env_id: str) -> str | None:
    """The id of the newest version of a registered environment, if `env_id` is an older one; else None."""
    try:
        namespace, name, version = gym.envs.registration.parse_env_id(env_id.rpartition(":")[2])
    except gym.error.Error:  # not an id, which `make_env` reports
        return None
    newest = gym.envs.registration.find_highest_version(namespace, name)
    if version is None or newest is None or newest <= version:
        return None
    return gym.envs.registration.get_env_id(namespace, name, newest)


def has_time_limit(env: gym.Env[Any, Any]) -> bool:
    """Whether episodes have a time limit, Gymnasium's or dm_control's own."""
    if env.spec is None or env.spec.max_episode_steps is not None:
        return True
    # dm_control's suite limits steps, its composer seconds. Neither limit is public, nor in the Gymnasium spec.
    limits = (getattr(env.unwrapped, name, math.inf) for name in ("_step_limit", "_time_limit"))
    return any(math.isfinite(limit) for limit in limits)


def time_limit(env: gym.Env[Any, Any]) -> int | None:
    """The time limit of an episode in steps, Gymnasium's or dm_control's; None for unlimited episodes."""
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    limit = getattr(env.unwrapped, "_step_limit", math.inf)  # see `has_time_limit`; a quotient of times, not an integer
    return math.ceil(limit) if math.isfinite(limit) else None


def times_unstable(env: gym.Env[Any, Any]) -> np.ndarray | None:
    """A live view of MuJoCo's counts of numbers that were not finite, by kind; None without MuJoCo."""
    data = getattr(env.unwrapped, "data", None)
    if data is None or not type(data).__module__.startswith("mujoco"):
        return None
    kinds = [int(getattr(sys.modules["mujoco"].mjtWarning, name)) for name in UNSTABLE]
    numbers: np.ndarray = data.warning.number[min(kinds) : max(kinds) + 1]  # adjacent, so a view and not a copy
    return numbers


def _find(env_id: str, on_warning: Callable[[str], object]) -> None:
    """Import the modules that register and make `env_id`; raise `UserError` if that fails."""
    module, _, name = env_id.rpartition(":")
    for start, suite in REGISTERED_ELSEWHERE.items():
        if module == suite.modules[0] or (not module and name not in gym.registry and re.match(start, name)):
            _require(env_id, suite)
            module = suite.modules[0]
    if module:
        try:
            _import_quietly(module, on_warning)
        except Exception as error:
            hint = f"; write env={_dotted(module)}:{name}" if _dotted(module) != module else ""
            reason = f"module {module} cannot be imported: {_one_line(error)}"
            raise UserError(f"env.id={env_id}: {reason}{hint}") from error
    spec = gym.registry.get(name)
    if spec is None:
        raise UnknownIdError(f"env.id={env_id}: {_unregistered(env_id.rpartition(':')[0], name)}")
    if isinstance(spec.entry_point, str):
        if spec.entry_point.startswith("gymnasium.envs.box2d."):
            _require(env_id, BOX2D)
        try:
            gym.envs.registration.load_env_creator(spec.entry_point)
        except Exception as error:
            raise UserError(f"env.id={env_id}: cannot be loaded: {_one_line(error)}") from error


def _unregistered(module: str, name: str) -> str:
    """Why an id is unknown, and which to write instead.

    Args:
        module: given before the id, and imported; may be empty.
        name: the id without it.
    """
    unknown = "no environment of that id is registered"
    if not module:
        close = difflib.get_close_matches(name, list(gym.registry), n=8, cutoff=0.5)
        close = list(itertools.islice(filter(_can_be_made, close), 3))
        return f"{unknown}; did you mean {' or '.join(close)}?" if close else unknown
    class_name = re.sub(r"-v\d+$", "", name).rpartition("/")[2]
    found = getattr(sys.modules[module], class_name, None)
    own = [spec for spec in gym.registry.values() if f"{_module_of(spec)}.".startswith(f"{module}.")]
    of_class = [spec.id for spec in own if spec.entry_point in (found, f"{module}:{class_name}")]
    if isinstance(found, type) and not of_class:
        new_id = f"{class_name}-v0"
        call = f'gymnasium.register("{new_id}", entry_point={class_name})'
        return f"{module} does not register its class {class_name}; add {call} to it and use env={module}:{new_id}"
    if not own:
        return f"{module} does not register this id; gymnasium.register(ID, entry_point=CLASS) in it would"
    ids = of_class or [spec.id for spec in own]
    close = difflib.get_close_matches(name, ids, n=3, cutoff=0.5) or ids[:3]
    return f"{unknown}; did you mean {' or '.join(f'{module}:{known}' for known in close)}?"


def _can_be_made(env_id: str) -> bool:
    """Whether an id of Gymnasium or its suites can be created with what is installed; others are not tried."""
    if not _module_of(gym.registry[env_id]).startswith("gymnasium"):
        return True
    try:
        make_env(env_id, on_warning=lambda _: None).close()
    except UserError:
        return False
    return True


def _module_of(spec: gym.envs.registration.EnvSpec) -> str:
    creator = spec.entry_point
    return creator.partition(":")[0] if isinstance(creator, str) else str(getattr(creator, "__module__", ""))


def _dotted(path: str) -> str:
    """The name to import a file by, such as `envs.cart` for `./envs/cart.py`."""
    return path.removeprefix("./").removesuffix(".py").replace("/", ".")


def _require(env_id: str, suite: Suite) -> None:
    if any(importlib.util.find_spec(module) is None for module in suite.modules):
        raise UserError(f"env.id={env_id}: needs {suite.name}; {to_install(suite.extra)}")


def _versions_hint(env_id: str) -> str:
    """A hint for errors as bare as AssertionError: these suites need their own version of MuJoCo."""
    name = env_id.rpartition(":")[2]
    suite = next((suite for start, suite in REGISTERED_ELSEWHERE.items() if re.match(start, name)), None)
    installed = suite is not None and suite.modules[0] in sys.modules
    return f" ({to_install(suite.extra)} installs compatible versions)" if suite and installed else ""


def _import_quietly(module: str, on_warning: Callable[[str], object]) -> None:
    """Import a module, and pass what it prints or warns to `on_warning`: suites print such lines to stderr."""
    with io.StringIO() as printed, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                importlib.import_module(module)
        finally:
            for line in [*printed.getvalue().splitlines(), *(str(warning.message) for warning in caught)]:
                on_warning(f"{module}: {_one_line(line)}")


def _check_action_space(env_id: str, space: spaces.Space[Any]) -> None:
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"env.id={env_id}: its actions are {space}; they must be continuous, a Box of floats")
    if not space.is_bounded() or np.any(np.abs([space.low, space.high]) >= MUJOCO_UNBOUNDED):
        raise UserError(f"env.id={env_id}: its actions are {space}; they must be bounded on both sides")
    if space.shape is None or 0 in space.shape:
        raise UserError(f"env.id={env_id}: its actions are {space}; there must be at least one")


def _check_observation_space(env_id: str, space: spaces.Space[Any]) -> None:
    for leaf in _leaves(space):
        if isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8 and len(leaf.shape) >= 2:
            raise UserError(f"env.id={env_id}: it observes images, {leaf}; only states are supported")
    if not space.is_np_flattenable:
        raise UserError(f"env.id={env_id}: its observations, {space}, cannot be flattened to numbers")
    if spaces.utils.flatdim(space) == 0:
        raise UserError(f"env.id={env_id}: its observations, {space}, are empty")


def _leaves(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict):
        return [leaf for child in space.spaces.values() for leaf in _leaves(child)]
    if isinstance(space, spaces.Tuple):
        return [leaf for child in space.spaces for leaf in _leaves(child)]
    return [space]


def _one_line(error: object) -> str:
    text = " ".join(str(error).replace("\x1b[33m", "").replace("\x1b[0m", "").split())
    return text or type(error).__name__
