"""Creating environments, and reusing those that are no longer needed: a simulator can be expensive."""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from dpg_cli.environments.plain_data import CannotCopy
from dpg_cli.environments.state import Constants, Env, constants, get_state, put_back

log = logging.getLogger(__name__)

Renewal = Literal["put back", "create", "keep"]  # what evaluations do with their environments before they start


class Instance:
    """An environment and its state as it was created.

    Args:
        env: just created.
    """

    def __init__(self, env: Env):
        self.env = env
        self.constants: Constants = constants(env)
        self._created: list[dict[str, Any]] | None = None
        with contextlib.suppress(CannotCopy):
            self._created = get_state(env, self.constants)

    def put_back(self) -> bool:
        """Put the environment back into the state in which it was created; whether that was possible."""
        if self._created is None:
            return False
        try:
            put_back(self.env, self._created, self.constants)
        except Exception as error:  # setting an attribute may raise anything
            log.info("an environment cannot be put back: %s: %s", type(error).__name__, error)
            return False
        return True


class Pool:
    """Environments of one kind. Calling it gives one in the state in which it was created. It can be pickled.

    Args:
        create: creates an environment.

    Attributes:
        create: the argument.
        seconds: that the last creation took.
    """

    def __init__(self, create: Callable[[], Env]):
        self.create = create
        self.seconds = 0.0
        self._spare: list[Env] = []
        self._instances: dict[int, Instance] = {}

    def __call__(self) -> Env:
        """An environment that nobody uses."""
        if self._spare:
            return self._spare.pop()
        start = time.perf_counter()
        env = self.create()
        self.seconds = time.perf_counter() - start
        self._instances[id(env)] = Instance(env)
        return env

    def put_back(self, env: Env) -> bool:
        """Put an environment from here back into the state in which it was created; whether that was possible."""
        return self._instances[id(env)].put_back()

    def keep(self, env: Env) -> None:
        """Keep an environment from here, as it is, for the next call."""
        self._spare.append(env)

    def discard(self, env: Env) -> None:
        """Close an environment from here."""
        del self._instances[id(env)]
        close(env)

    def close(self) -> None:
        """Close the environments that nobody uses, and forget the others, which cannot be given back any more."""
        for env in self._spare:
            close(env)
        self._spare, self._instances = [], {}

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which creates its own."""
        return {"create": self.create, "seconds": 0.0, "_spare": [], "_instances": {}}


def close(env: Env) -> None:
    """Close an environment. What that raises is logged: a lost simulator often cannot be closed."""
    try:
        env.close()
    except Exception as error:
        log.warning("closing %s raised %s: %s", type(env.unwrapped).__name__, type(error).__name__, error)
