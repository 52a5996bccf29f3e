"""`dpg-train` in a process of its own, and the runs that it trains."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dpg_cli.cli import resume, train  # noqa: F401 - resume is imported for the forks
from dpg_cli.cli.signals import HANDLED

SMALL = ["algo.hidden_sizes=[16]", "algo.batch_size=8", "total_steps=160", "random_steps=30", "learning_starts=30"]
SMALL += ["eval.every=40", "eval.episodes=2", "checkpoint.every=15", "log.every=10", "threads=1"]
SMALL += ["env.max_episode_steps=25", "device=cpu"]
WRAPPED, SHARED = "buffer_size=50", "share_next_obs=true"
RUNS = {
    "HalfCheetah-v4": ["env=HalfCheetah-v4"],
    "HalfCheetah-v4, OU, 3 seeds": ["env=HalfCheetah-v4", "noise=ou", "num_seeds=3"],
    "HalfCheetah-v4, 2 environments, wrapped": ["env=HalfCheetah-v4", "num_envs=2", WRAPPED, SHARED],
    "Ant-v4, 2 environments": ["env=Ant-v4", "num_envs=2"],
    "Ant-v4, OU, DDPG, normalised, wrapped": [
        "env=Ant-v4",
        "noise=ou",
        "algo=ddpg",
        "algo.normalize_obs=true",
        WRAPPED,
    ],
    "Humanoid-v4": ["env=Humanoid-v4"],
    "Humanoid-v4, OU, 3 seeds, wrapped": ["env=Humanoid-v4", "noise=ou", "num_seeds=3", WRAPPED, SHARED],
    "Pendulum-v1, OU, 3 seeds, 2 environments": ["env=Pendulum-v1", "noise=ou", "num_seeds=3", "num_envs=2"],
    "Pendulum-v1, DDPG, wrapped": ["env=Pendulum-v1", "algo=ddpg", WRAPPED],
    "cannot be copied, OU": ["env=toy_envs:Toy/Odd-v0", "noise=ou", "algo.normalize_obs=true"],
}
RUNS = {name: [*arguments, *SMALL] for name, arguments in RUNS.items()}
PENDULUM = ["env=Pendulum-v1", "noise=ou", *SMALL, WRAPPED]
RUNS["Pendulum-v1"] = PENDULUM
TINY = [*PENDULUM, "total_steps=20", "random_steps=5", "eval.every=20", "eval.episodes=1"]
RUNS["tiny"] = TINY
HERE = "hydra.run.dir=run"
RESUME = ["resume=run", "trust=true"]


class Command:
    """`dpg-train` in a process of its own, in a folder; it ends with this object's `with`.

    Args:
        folder: where it works; what it prints is appended to `out` and `err` there.
        arguments: of the command.
        prepare: called in the process before it begins; nothing with `installed`.
        installed: whether it is the installed command, not a fork of this process.
        environment: more variables.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        prepare: Callable[[], None] = lambda: None,
        *,
        installed: bool = False,
        environment: Mapping[str, str] = {},
    ):
        self._folder = folder
        self._begins = {name: self._size(name) for name in ("out", "err")}
        self._code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.chdir(folder)
                for number in (*HANDLED, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for descriptor, name in enumerate(["/dev/null", "out", "err"]):
                    opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                    os.dup2(opened, descriptor)
                os.environ |= environment
                if installed:
                    path = Path(sys.executable).with_name("dpg-train")
                    os.execv(path, [str(path), *arguments])
                sys.argv = ["dpg-train", *arguments]
                prepare()
                try:
                    train.main()
                except SystemExit as ended:
                    code = ended.code if isinstance(ended.code, int) else 0
                except KeyboardInterrupt:
                    code = 130
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def running(self) -> bool:
        """Whether it still runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = as_a_shell_says(status)
        return self._code is None

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        if self.running():
            os.kill(self.pid, number)

    def wait(self, seconds: float = 3600) -> int:
        """The exit code, as a shell says it."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise AssertionError(f"it ran for more than {seconds} s")
            time.sleep(0.002)
        assert self._code is not None
        return self._code

    def out(self) -> str:
        """What it printed."""
        return self._text("out")

    def err(self) -> str:
        """What it complained."""
        return self._text("err")

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            self.wait()

    def _size(self, name: str) -> int:
        path = self._folder / name
        return path.stat().st_size if path.exists() else 0

    def _text(self, name: str) -> str:
        return (self._folder / name).read_bytes()[self._begins[name] :].decode(errors="replace")


def as_a_shell_says(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def suicide() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)
