"""Creating environments, and reusing those that are no longer needed: a simulator can be expensive."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from dpg_cli.environments.state import CannotCopy, Constants, Env, constants, get_state, put_back


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
        except (CannotCopy, ValueError, AttributeError):
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

    def give_back(self, env: Env) -> None:
        """Keep an environment from here for the next call, or close it if it cannot be put back."""
        if self.put_back(env):
            self._spare.append(env)
        else:
            del self._instances[id(env)]
            env.close()

    def close(self) -> None:
        """Close the environments that nobody uses, and forget the others, which cannot be given back any more."""
        with contextlib.ExitStack() as each:  # also those after one that raises
            for env in self._spare:
                each.callback(env.close)
        self._spare, self._instances = [], {}

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which creates its own."""
        return {"create": self.create, "seconds": 0.0, "_spare": [], "_instances": {}}
