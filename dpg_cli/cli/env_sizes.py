"""The process that creates the environments of a sweep once, to find the sizes of observations and actions."""

import contextlib
import os

from dpg_cli.cli.job_process import connect, receive
from dpg_cli.environments.make import make_env


def main() -> None:
    """Send the sizes of each environment that can be created."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    reports, _ = connect(lambda: os._exit(1))
    for environment in receive()["environments"]:
        with contextlib.suppress(Exception, SystemExit):  # the job itself will say what is wrong
            env = make_env(environment["id"], environment["kwargs"])
            observed, acting = env.observation_space.shape, env.action_space.shape
            assert observed is not None and acting is not None  # noqa: PT018
            reports.send("sizes", key=environment["key"], sizes=[observed[0], acting[0]])
            env.close()


if __name__ == "__main__":
    main()
