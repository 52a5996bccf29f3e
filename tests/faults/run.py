#!/usr/bin/env python
"""Every fault that a run must survive, many times, in processes of their own.

    python scripts/faults.py                                   # all of it
    python scripts/faults.py only=kill,signals seed=7 jobs=2 out=faults.json
    python scripts/faults.py only=kill case=17                 # one case again

Every case draws its random moment from a generator of its own, keyed by (seed, row, case), and prints it. A case
passes if the run, once resumed, comes to the very numbers of a run that met no fault (`tests/oracle.py`). Most
trainings are forked from this process, which has everything imported, since a start would take longer than what it
trains; every tenth kill and all cases of `clock` are the installed command. What needs no process of its own (each
call to the disk that fails or is not synced, controls, hostile folders) is in the tests.
"""

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
os.environ["OMP_NUM_THREADS"] = "1"

import damage  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from commands import lines, without_time  # noqa: E402
from faulty_disk import CountingDisk, PowerlessDisk  # noqa: E402
from moments import at  # noqa: E402
from oracle import differences, members, unsound  # noqa: E402

from dpg_cli.cli import job, resume, train  # noqa: E402, F401 - resume is imported for the forks
from dpg_cli.cli.arguments import parse, run_script, whole  # noqa: E402
from dpg_cli.cli.signals import GRACE, HANDLED  # noqa: E402
from dpg_cli.errors import UserError  # noqa: E402
from dpg_cli.storage import checkpoint, run_dir  # noqa: E402

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
LIBFAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


# --- a training in a process of its own ---


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


# --- cases ---


@dataclass
class Case:
    """One case of a row.

    Attributes:
        number: of the case.
        random: draws its moments.
        folder: its own, empty.
        wholes: of the runs that met no fault.
        drawn: what it says about itself.
    """

    number: int
    random: np.random.Generator
    folder: Path
    wholes: Path
    drawn: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def note(self, text: str) -> None:
        """What was drawn or found."""
        self.drawn.append(text)

    def whole(self, name: str) -> Path:
        """The run that met no fault."""
        return self.wholes / name / "run"

    def command(self, *arguments: str, **options: Any) -> Command:
        """A training in this folder."""
        return Command(self.folder, arguments, **options)

    def expect(self, code: int, *arguments: str, **options: Any) -> Command:
        """A training that ends with a code."""
        with self.command(*arguments, **options) as command:
            ended = command.wait()
        assert ended == code, f"exit code {ended}, not {code}: {command.err()[-2000:]}"
        return command

    def resumed(self, name: str) -> None:
        """Resume the run, or begin it where not even its config was written, and compare."""
        self.expect(0, *self.again(name))
        if "Odd" in RUNS[name][0]:
            same_until_new_episode(self.run, self.whole(name))
        else:
            found = differences(self.run, self.whole(name))
            assert not found, f"differs: {found}"

    def again(self, name: str) -> list[str]:
        """How the run goes on."""
        if (self.run / "config.yaml").exists():
            return RESUME
        if self.run.exists():
            self.note("only the empty folder was there")
            shutil.rmtree(self.run)
        return [*RUNS[name], HERE]


def same_until_new_episode(run: Path, whole: Path) -> None:
    """All is equal up to the first checkpoint that was gone on from, and the run ends."""
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    until = min((resumed["step"] for resumed in record.get("resumed", [])), default=record["last_step"])
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        own, other = ([r for r in without_time(lines(path / name)) if r["step"] <= until] for path in (run, whole))
        assert own == other, f"{name} differs before step {until}"
        assert lines(run / name)[-1]["step"] == lines(whole / name)[-1]["step"]
    own, other = (np.concatenate([np.load(p) for p in sorted(path.glob("replay/*.npy"))]) for path in (run, whole))
    assert own[:until].tobytes() == other[:until].tobytes(), "transitions differ"
    assert not unsound(run), f"unsound: {unsound(run)}"


def records(run: Path) -> int:
    """How many records a run has by now."""
    try:
        return (members(run)[0] / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def kill(case: Case) -> None:
    """SIGKILL at a random moment, then resume."""
    name = list(RUNS)[case.number % 10]
    kills = 3 if case.number // 10 % 3 == 2 else 1
    installed = case.number // 10 == case.number % 10
    case.note(f"{name}{', the installed command' if installed else ''}")
    total, reached = records(case.whole(name)), 0.0
    for _ in range(kills):
        delay = case.random.exponential(0.02)
        with case.command(*case.again(name), installed=installed) as command:
            if case.random.random() < 0.2:
                delay = case.random.uniform(0, 6.0 if installed else 1.5)
                moment = f"after {delay:.3f} s"
            else:
                reached = case.random.uniform(reached, 1)
                moment = f"{delay:.4f} s after record {int(reached * total)} of {total}"
                while records(case.run) < int(reached * total) and command.running():
                    time.sleep(0.001)
            time.sleep(delay)
            command.send(signal.SIGKILL)
            code = command.wait()
        assert code in (0, 137), command.err()
        case.note(moment + ("" if code else " (it had ended)"))
    case.resumed(name)


WAYS = {"killed": 17, "power fails": 17, "fails once": 14, "fails from then on": 14}  # of 17 calls 3 remove something
CALLS = [(way, call) for way, number in WAYS.items() for call in range(number)]


def calls(case: Case) -> None:
    """One call to the disk, of one checkpoint of a real training, kills it, loses what is not synced, or fails."""
    way, call = CALLS[case.number]
    error = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)[call % 4]
    name, refused = "Pendulum-v1", "fails" in way and way != "power fails"

    def prepare() -> None:
        def new(run: Path, versions: Any, keep: int, start: Any = None) -> checkpoint.Checkpoints:
            if way == "killed":
                disk: CountingDisk = Killing(first + call)
            elif way == "power fails":
                disk = Powerless(run, first + call)
            else:
                disk = CountingDisk(first + call, error, way == "fails from then on")
            return checkpoint.Checkpoints(run, versions, keep, disk, start)

        job.Checkpoints = new  # type: ignore[assignment, misc]

    first, last = (int(text) for text in (case.whole(name).parent / f"calls {way[0]}").read_text().split())
    assert last - first == WAYS[way], f"a checkpoint takes {last - first} calls"
    case.note(f"call {call}: {way}" + (f" ({errno.errorcode[error]})" if refused else ""))
    command = case.expect(1 if refused else 137, *PENDULUM, HERE, prepare=prepare)
    if refused:
        assert re.search(r"failed: .*run/.* bytes are free", command.err()), command.err()
        assert not checkpoint.valid_steps(case.run)[1]
    case.resumed(name)


class Killing(CountingDisk):
    """SIGKILL at a call, which writes half of its file first."""

    def _happens(self, path: Path, data: Any = None) -> None:
        if self.calls == self.at and data is not None:
            Path(path).write_bytes(bytes(data)[: len(data) // 2])
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._happens(path, data)


class Powerless(PowerlessDisk):
    """The power fails at a call: what is not synced is lost, then SIGKILL."""

    def _happens(self, path: Path, data: Any = None) -> None:
        if self.calls == self.at:
            others = {path: path.read_bytes() for path in self.root.iterdir() if path.is_file()}  # not written by it
            self.fail()
            for other, content in others.items():
                other.write_bytes(content)
            os.kill(os.getpid(), signal.SIGKILL)
        super()._happens(path, data)


def full_disk(case: Case) -> None:
    """A real file system of 20 MB that fills."""
    if os.geteuid() != 0:
        case.note("left out: mounting needs root")
        return
    name, mounted = "Pendulum-v1", case.folder / "run"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(mounted)], check=True)
    try:
        pages = [-(-path.stat().st_size // 4096) for path in case.whole(name).rglob("*") if path.is_file()]
        left = 4096 * int(case.random.uniform(0.4, 0.8) * sum(pages))
        (mounted / "filler").write_bytes(bytes(20 * 2**20 - left))
        case.note(f"{left:,} bytes left")
        command = case.expect(1, *PENDULUM, "hydra.run.dir=run/run")
        assert re.search(r"failed: .*[Nn]o space left", command.err()), command.err()
        assert command.err().count("\n") == 1, "more than one line"
        (mounted / "filler").unlink()
        case.expect(0, "resume=run/run")
        found = differences(mounted / "run", case.whole(name))
        assert not found, f"differs: {found}"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


SIGNAL_MOMENTS = ("random steps", "learning", "evaluation", "checkpoint", "reset", "start-up", "sweep")
SIGNALS = list(itertools.product(SIGNAL_MOMENTS, HANDLED, (1, 2)))


def signals(case: Case) -> None:
    """A signal at a random call of a kind, once or twice, then resume."""
    moment, number, times = SIGNALS[case.number]
    start_up = ["compose", "check", "claim", "begin", "copies_exactly", "build", "recorder"]
    name = str(case.random.choice(["Pendulum-v1", "HalfCheetah-v4", "HalfCheetah-v4, 2 environments, wrapped"]))
    envs = 2 if "num_envs=2" in RUNS[name] else 1
    highest = {"random steps": 30 // envs, "learning": 125, "evaluation": 124, "checkpoint": 150, "reset": 19}
    where, first, arguments = moment, 0, [*RUNS[name], HERE]
    if moment == "sweep":
        where, name = "learning", "Pendulum-v1"
        arguments = ["-m", "env_threads=1,auto", *RUNS[name], "hydra.sweep.dir=sweep"]  # the same numbers twice
        highest["learning"] = 250
    elif moment == "start-up":
        where = str(case.random.choice(start_up))
    elif moment == "reset":
        first = 9  # before it are those of the checks
    call = int(case.random.integers(first, highest.get(where, 1)))
    case.note(f"{name}: {signal.Signals(number).name} x {times} at {moment}, call {call} of {where}")

    def send() -> None:
        os.kill(os.getpid(), number)
        if times == 2:
            time.sleep(GRACE + 0.1)
            os.kill(os.getpid(), number)

    command = case.expect(128 + number, *arguments, prepare=lambda: at(where, call, send, setattr))
    handled = where not in start_up[:3]
    assert ("resume with dpg-train resume=" in command.err()) == (handled and times == 1), command.err()
    if moment == "sweep":
        stopped = "1" if call >= 130 else "0"
        if stopped == "1":
            assert not differences(case.folder / "sweep/0", case.whole(name)), "the job before it"
        assert (case.folder / "sweep/1").exists() == (stopped == "1"), "another job began"
        (case.folder / "sweep" / stopped).rename(case.run)
    elif handled:
        status = run_dir.status(members(case.run)[0])
        assert status in ("interrupted", None), status  # none where the second came before run.json was written
        assert not checkpoint.valid_steps(case.run)[1]
    case.resumed(name)


def starts(case: Case) -> None:
    """Many processes claim their folders in the same moment, each its own or all one."""
    number, repetition = (2, 8, 32)[case.number // 5], case.number % 5
    one = repetition >= 3
    case.note(f"{number} processes, {'one folder' if one else 'folders by the time'}")
    arguments = [*TINY, HERE] if one else TINY
    codes = together(case, [arguments] * number, run_dir, "claim")
    runs = [case.run] if one else [path.parent for path in case.folder.glob("outputs/*/*/*/config.yaml")]
    assert sorted(code for code, _ in codes) == ([0] + [2] * (number - 1) if one else [0] * number), codes
    assert sum("exists already" in err for _, err in codes) == (number - 1 if one else 0)
    assert len(runs) == (1 if one else number)
    for run in runs:
        assert not differences(run, case.whole("tiny")), run


def resumes(case: Case) -> None:
    """Two processes resume one folder in the same moment."""
    shutil.copytree(case.whole("Pendulum-v1"), case.run, symlinks=True)
    longer = [*RESUME, "total_steps=260", "buffer_size=50"][:-1]
    codes = together(case, [longer] * 2, run_dir, "locked")
    assert sorted(code for code, _ in codes) == [0, 2], codes
    assert sum("is being trained by another process" in err for _, err in codes) == 1, codes
    found = differences(case.run, case.whole("longer"))
    assert not found, f"differs: {found}"


def together(case: Case, commands: Sequence[Sequence[str]], owner: Any, name: str) -> list[tuple[int, str]]:
    """Run commands that all wait for each other before a function: their codes and what they complained."""
    folder, number = case.folder / "waiting", len(commands)
    folder.mkdir()

    def prepare() -> None:
        function = getattr(owner, name)

        def waiting(*arguments: Any, **named: Any) -> Any:
            (folder / str(os.getpid())).touch()
            while len(list(folder.iterdir())) < number:
                time.sleep(0.001)
            setattr(owner, name, function)
            return function(*arguments, **named)

        setattr(owner, name, waiting)

    with contextlib.ExitStack() as stack:
        processes = []
        for index, arguments in enumerate(commands):
            log = case.folder / f"err_{index}"

            def redirected(log: Path = log) -> None:
                os.dup2(os.open(log, os.O_RDWR | os.O_CREAT), 2)
                prepare()

            processes.append(stack.enter_context(case.command(*arguments, prepare=redirected)))
        codes = [process.wait() for process in processes]
    return [(code, (case.folder / f"err_{index}").read_text()) for index, code in enumerate(codes)]


def clock(case: Case) -> None:
    """The clock is set back or frozen, paths are odd, the folder is moved: the installed command."""
    back = {"LD_PRELOAD": str(LIBFAKETIME[0]), "FAKETIME": "-400d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    frozen = {**back, "FAKETIME": "2026-01-01 00:00:00"}
    name = "Pendulum-v1" if case.number != 5 else "HalfCheetah-v4, OU, 3 seeds"
    what = ["set back before the resume", "frozen", "frozen, and two starts", "odd path", "moved", "moved and set back"]
    case.note(what[case.number])
    stop = int(case.random.integers(4, records(case.whole(name)) - 2))
    case.note(f"killed after record {stop}")

    def killed(*arguments: str, run: Path, environment: Mapping[str, str] = {}) -> None:
        with case.command(*arguments, installed=True, environment=environment) as command:
            while records(run) < stop and command.running():
                time.sleep(0.001)
            command.send(signal.SIGKILL)
            assert command.wait() in (0, 137), command.err()

    odd = "my runs/Läufe ☃, a=1"
    run, environment = case.run, {}
    if case.number == 2:
        with contextlib.ExitStack() as stack:
            arguments = [*TINY, "hydra.run.dir='run-${now:%Y-%m-%d_%H-%M-%S-%f}'"]
            both = [stack.enter_context(case.command(*arguments, installed=True, environment=frozen)) for _ in range(2)]
            assert sorted(command.wait() for command in both) == [0, 2], both[0].err()
        assert "exists already" in both[0].err()
        (run,) = case.folder.glob("run-2026-01-01_00-00-00-*")
        assert not differences(run, case.whole("tiny"))
        return
    if case.number in (0, 1):
        environment = back if case.number == 0 else frozen
        killed(*RUNS[name], HERE, run=run, environment=frozen if case.number == 1 else {})
    elif case.number == 3:
        run = case.folder / odd
        killed(*RUNS[name], f"hydra.run.dir='{odd}'", run=run)
    else:
        killed(*RUNS[name], HERE, run=run)
        run = case.folder / "elsewhere" / odd
        run.parent.mkdir(parents=True)
        case.run.rename(run)
        environment = back if case.number == 5 else {}
    case.expect(0, f"resume={run}", installed=True, environment=environment)
    found = differences(run, case.whole(name))
    assert not found, f"differs: {found}"


CURVES = ("metrics.jsonl", "evaluations.jsonl", "events")
ADDED = ("a torn line", "lines again", "garbage", "zeros")
LOST = ("deleted", "truncated", "zeroed", "flipped")
TORN = list(itertools.product(CURVES, (*ADDED, *LOST), (1, 3)))


def torn(case: Case) -> None:
    """A curve's file is torn, doubled, damaged or gone. What was lost before the checkpoint cannot come back."""
    file, what, seeds = TORN[case.number]
    name = "Pendulum-v1" if seeds == 1 else "HalfCheetah-v4, OU, 3 seeds"
    case.note(f"{name}: {file}: {what}")
    call = int(case.random.integers(5, 120))
    case.note(f"killed before step {call}")
    case.expect(137, *RUNS[name], HERE, prepare=lambda: at("step", call, suicide, setattr))
    member = members(case.run)[int(case.random.integers(seeds))]
    path = next(member.glob("events.*")) if file == "events" else member / file
    data = path.read_bytes()
    if what in ADDED:
        length = int(case.random.integers(1, 300))
        added = {"a torn line": b'{"step": 1', "lines again": data[-length:]}
        added |= {"garbage": case.random.bytes(length), "zeros": bytes(length)}
        path.write_bytes(data + added[what])
    else:
        {"deleted": damage.deleted, "truncated": damage.truncated, "zeroed": damage.zeroed, "flipped": damage.flipped}[
            what
        ](path, case.random)
    files = checkpoint.load(member, checkpoint.saved_steps(member)[-1]).state["files"]
    lost = not path.exists() or path.stat().st_size < files[path.name]
    if what in ADDED or (what in ("deleted", "truncated") and (file == "events" or not lost)):
        case.resumed(name)
        return
    # What is gone is gone, but the run goes on, and its numbers from there on are the same.
    command = case.expect(0, *RESUME)
    if what in ("deleted", "truncated"):
        logs = (case.run / "train.log").read_text() + command.err()
        assert "has lost" in logs, logs
    curves = {
        "metrics.jsonl": {"metrics", "TensorBoard"},
        "evaluations.jsonl": {"evaluations"},
        "events": {"TensorBoard"},
    }
    found = set(differences_or_unreadable(case.run, case.whole(name)))
    assert found <= curves[file] | {"unreadable"}, f"differs: {found}"


def differences_or_unreadable(run: Path, whole: Path) -> list[str]:
    """As `differences`, of a run whose own files may be damaged where the fault was."""
    try:
        return differences(run, whole)
    except (ValueError, UnicodeDecodeError):
        from oracle import digest

        pairs = zip(members(run), members(whole), strict=True)
        return ["unreadable"] if all(digest(own) == digest(other) for own, other in pairs) else ["state"]


def suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FILES = ("manifest.json", "policy.safetensors", "state.json", "state.safetensors", "shard", "older shard")
HOLDING = [(damage.misshapen, f) for f in FILES[1:] if f != "state.json"] + [(damage.incomplete, f) for f in FILES]
DAMAGED = [*itertools.product(damage.DAMAGES, FILES), *HOLDING] * 2


def damaged(case: Case) -> None:
    """A file of the newest checkpoint is damaged, or holds something else: named, and the one before is taken."""
    how, file = DAMAGED[case.number]
    name = "Pendulum-v1"
    shutil.copytree(case.wholes / name / "killed", case.run, symlinks=True)
    steps, _ = checkpoint.valid_steps(case.run)
    newest = case.run / "checkpoints" / f"step_{steps[-1]:09d}"
    manifests = [json.loads((newest.with_name(f"step_{step:09d}") / "manifest.json").read_text()) for step in steps]
    new, old = sorted(manifests[-1]["shards"])[-1], sorted(manifests[-1]["shards"])[0]
    path = case.run / "replay" / (new if file == "shard" else old) if "shard" in file else newest / file
    about = how(path, case.random)
    case.note(f"{file}: {how.__name__}{'' if about is None else f' ({about})'}")
    _, bad = checkpoint.valid_steps(case.run)
    if how in damage.DAMAGES:
        assert steps[-1] in bad, "not noticed"
    if file == "older shard":  # of both checkpoints, which go with it
        with case.command(*RESUME) as command:
            assert command.wait() in (0, 1, 2), command.err()
            assert "Traceback" not in command.err()
        return
    if how in damage.DAMAGES:
        command = case.expect(0, *RESUME)
        assert f"step {steps[-1]:,} is damaged" in command.err(), command.err()
    else:  # the manifest was made to agree with it: refused in one line
        with case.command(*RESUME) as command:
            code = command.wait()
        if file == "policy.safetensors" and code == 0:
            pass  # nothing that a run goes on from: networks are in the state too
        elif code == 0:
            assert f"step {steps[-1]:,} is damaged" in command.err(), command.err()
        else:
            assert code in (1, 2), command.err()
            assert "Traceback" not in command.err(), command.err()
            assert command.err().count("\n") <= 2, command.err()
            shutil.rmtree(newest)
            case.expect(0, *RESUME)
    found = differences(case.run, case.whole(name))
    assert not found, f"differs: {found}"


ROWS: dict[str, tuple[Callable[[Case], None], int]] = {
    "kill": (kill, 100),
    "calls": (calls, len(CALLS)),
    "full_disk": (full_disk, 1),
    "signals": (signals, len(SIGNALS)),
    "starts": (starts, 15),
    "resumes": (resumes, 10),
    "clock": (clock, 6),
    "torn": (torn, len(TORN)),
    "damaged": (damaged, len(DAMAGED)),
}


# --- the whole ---


def prepare_wholes(wholes: Path) -> None:
    """Train what all cases compare with; what is there already, in a folder given by hand, is taken."""
    if (wholes / "done").exists():
        return
    for name in RUNS:
        folder = wholes / name
        folder.mkdir(parents=True, exist_ok=True)
        with Command(folder, [*RUNS[name], HERE]) as command:
            assert command.wait() == 0, command.err()
    long = wholes / "longer"
    long.mkdir()
    with Command(long, [*PENDULUM, "total_steps=260", HERE]) as command:
        assert command.wait() == 0, command.err()
    folder = wholes / "Pendulum-v1"
    with Command(folder, [*PENDULUM, "hydra.run.dir=killed"], lambda: at("step", 100, suicide, setattr)) as command:
        assert command.wait() == 137, command.err()
    for way in "kpf":  # how many calls the checkpoint of step 45 takes, and which; removing is one for a crash alone
        with Command(folder, [*PENDULUM, f"hydra.run.dir=counted_{way}"], lambda way=way: count_calls(way)) as command:
            assert command.wait() == 0, command.err()
    (wholes / "done").touch()


def count_calls(way: str) -> None:
    def new(run: Path, versions: Any, keep: int, start: Any = None) -> checkpoint.Checkpoints:
        disk = CountingDisk(error=None if way in "kp" else 1)
        writer = checkpoint.Checkpoints(run, versions, keep, disk, start)
        save = writer.save

        def counted(step: int, *arguments: Any, **named: Any) -> None:
            first = disk.calls
            save(step, *arguments, **named)
            if step == 45:
                (run.parent / f"calls {way}").write_text(f"{first} {disk.calls}")

        writer.save = counted  # type: ignore[method-assign]
        return writer

    job.Checkpoints = new  # type: ignore[assignment, misc]


def run_case(row: str, number: int, seed: int, wholes: Path) -> dict[str, Any]:
    """One case: how it went."""
    torch.set_num_threads(1)
    folder = wholes.parent / row / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = Case(number, np.random.default_rng([seed, list(ROWS).index(row), number]), folder, wholes)
    start, error = time.monotonic(), None
    try:
        ROWS[row][0](case)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    else:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - start, 1)
    return {"row": row, "case": number, "drawn": case.drawn, "error": error, "seconds": seconds}


def run_rows(rows: Sequence[str], values: Mapping[str, str], seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    wholes = folder / "whole"
    prepare_wholes(wholes)
    jobs = whole(dict(values), "jobs", len(os.sched_getaffinity(0)), minimum=1)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        futures = []
        for row in rows:
            most = ROWS[row][1]
            numbers: Sequence[int] = range(min(whole(dict(values), "cases", most, minimum=1), most))
            if "case" in values:
                numbers = [whole(dict(values), "case", 0, minimum=0)]
            futures += [pool.submit(run_case, row, number, seed, wholes) for number in numbers]
        for future in futures:
            yield future.result()


def main() -> None:
    values = parse(sys.argv[1:], ("only", "seed", "cases", "case", "jobs", "out", "folder"), required=())
    rows = values.get("only", ",".join(ROWS)).split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        raise UserError(f"only={unknown[0]}: there are {', '.join(ROWS)}")
    if "clock" in rows and not LIBFAKETIME:
        raise UserError("only=clock: needs libfaketime (apt install libfaketime)")
    torch.set_num_threads(1)
    seed, start, results = whole(values, "seed", 0, minimum=0), time.monotonic(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(values.get("folder", temporary)).resolve()
        for result in run_rows(rows, values, seed, folder):
            results.append(result)
            verdict = "ok" if result["error"] is None else f"FAILED: {result['error']}"
            about = "; ".join(result["drawn"])
            print(f"{result['row']} {result['case']}: {about} [{result['seconds']} s] {verdict}", flush=True)
    print(f"\nseed {seed}, {time.monotonic() - start:.0f} s, {platform.platform()}, {os.cpu_count()} cores")
    for row in rows:
        own = [result for result in results if result["row"] == row]
        print(f"{row:10} {sum(result['error'] is None for result in own):4} of {len(own)} passed")
    if "out" in values:
        Path(values["out"]).write_text(json.dumps({"seed": seed, "results": results}, indent=2) + "\n")
    sys.exit(any(result["error"] is not None for result in results))


if __name__ == "__main__":
    run_script("faults", main)
