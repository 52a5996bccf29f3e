#!/usr/bin/env python
"""Disturb sweeps of `hydra/launcher=local` at random moments, resume them, and compare them with an undisturbed one.

    python scripts/measure/sweep_faults.py
    python scripts/measure/sweep_faults.py seed=0 cases=60 out=faults
    python scripts/measure/sweep_faults.py seed=0 case=17 out=faults    # one case again

Each case runs a sweep of four short jobs, two at once, and disturbs it: once, or in every sixth case two or three times
in a row. Moments and faults come from a generator keyed by (seed, case). `resume=` then runs until it exits with 0. A
case passes if

- every job equals that of the undisturbed sweep: `evaluations.jsonl` byte for byte, and everything else that
  `tests/oracle.py` compares,
- `sweep.json` and every `run.json` say `done`, and a finished job was not touched again,
- jobs that were stopped, or whose parent was killed, wrote a checkpoint,
- no process and no temporary file is left.

`out=` is a folder for `results.json` and the folders of cases that failed. Full disks are small tmpfs: mounting one
needs root.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle import differences, members  # noqa: E402
from results import machine  # noqa: E402

from dpg_cli.cli.arguments import output_folder, parse, run_script, whole  # noqa: E402
from dpg_cli.cli.signals import GRACE  # noqa: E402
from dpg_cli.errors import UserError  # noqa: E402

COMMAND = (sys.executable, "-c", "from dpg_cli.cli.train import main; main()")
SWEEP = [
    *("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep", "env=Pendulum-v1"),
    *("algo=td3,ddpg", "num_seeds=1,2", "algo.hidden_sizes=[16]", "algo.batch_size=16", "total_steps=1200"),
    *("random_steps=100", "eval.every=300", "eval.episodes=1", "checkpoint.every=300", "log.every=300", "device=cpu"),
]
DISK = 16_000_000  # bytes of a disk that fills
START_UP = 6.0  # seconds after a start in which two of five faults happen
ENDS = 60.0  # seconds that a disturbed sweep may take to end
LEFT = 15.0  # seconds that its processes may take
NOTICED = 5.0  # seconds in which jobs must notice that their parent was killed
LIFELINE = 10.0  # seconds in which they must then have ended
RESUMES = 4  # most that a case may need
MARK = "DPG_SWEEP_FAULTS"  # an environment variable that names the case, in each of its processes


@dataclass
class Case:
    """One disturbed sweep.

    Attributes:
        number: of the case.
        random: draws its faults and moments.
        folder: its own, empty.
        reference: the folder of the undisturbed sweep.
        mark: value of `MARK` in its processes.
        drawn: what happened.
        finished: content of `run.json`, by job, of jobs that were done after a fault.
        noticed: seconds from SIGKILL of the parent until the last job had said that it stops, or had ended.
        gone: seconds from each fault that ends the sweep until its last process had ended.
        resumes: how many `resume=` were needed after the last fault.
        missed: how many faults came after the sweep had ended.
    """

    number: int
    random: np.random.Generator
    folder: Path
    reference: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    drawn: list[str] = field(default_factory=list)
    finished: dict[str, bytes] = field(default_factory=dict)
    noticed: list[float] = field(default_factory=list)
    gone: list[float] = field(default_factory=list)
    resumes: int = 0
    missed: int = 0

    @property
    def sweep(self) -> Path:
        """The folder of the sweep."""
        return self.folder / "sweep"

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the sweep, or resume it; anew if it was killed before it had written anything that could be resumed."""
        begun = (self.sweep / "sweep.json").exists()
        if not begun:
            shutil.rmtree(self.sweep, ignore_errors=True)
        with (self.folder.parent / f"{self.folder.name}.txt").open("ab") as log:
            return subprocess.Popen(
                [*COMMAND, *(["resume=sweep"] if begun else SWEEP)],
                cwd=self.folder,
                env={**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # as a terminal gives each command a process group
            )

    def processes(self) -> list[int]:
        """All processes of the case, by their ids."""
        mark, found = f"{MARK}={self.mark}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def jobs(self, statuses: Sequence[str]) -> Iterator[Path]:
        """The jobs whose `run.json` has one of these statuses."""
        for path in sorted(self.sweep.glob("[0-9]*")):
            if _json(path / "run.json").get("status") in statuses:
                yield path


Process = subprocess.Popen[bytes]


def child(case: Case, sweep: Process) -> int | None:
    """The process of a random job, or a spare interpreter; None if the sweep ends before it has one."""
    while sweep.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if found := psutil.Process(sweep.pid).children():
                return sorted(process.pid for process in found)[int(case.random.integers(len(found)))]
        time.sleep(0.01)
    return None


def kill_job(case: Case, sweep: Process) -> None:
    """SIGKILL of a job, as by the kernel when memory is short."""
    if (pid := child(case, sweep)) is not None:
        _send(pid, signal.SIGKILL)


def kill_parent(case: Case, sweep: Process) -> None:
    """SIGKILL of the sweep's process."""
    _send(sweep.pid, signal.SIGKILL)


def kill_both(case: Case, sweep: Process) -> None:
    """SIGKILL of a job and of the sweep's process."""
    kill_job(case, sweep)
    kill_parent(case, sweep)


def interrupt(case: Case, sweep: Process) -> None:
    """SIGINT to the sweep's process."""
    _send(sweep.pid, signal.SIGINT)


def interrupt_group(case: Case, sweep: Process) -> None:
    """SIGINT to its process group, as a terminal does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(sweep.pid, signal.SIGINT)


def interrupt_twice(case: Case, sweep: Process) -> None:
    """SIGINT, and again while the jobs stop or after."""
    interrupt(case, sweep)
    time.sleep(GRACE + case.random.uniform(0.05, 0.5))
    if sweep.poll() is None:
        interrupt(case, sweep)


def terminate(case: Case, sweep: Process) -> None:
    """SIGTERM to the sweep's process."""
    _send(sweep.pid, signal.SIGTERM)


def limit_memory(case: Case, sweep: Process) -> None:
    """No more address space for any process than it has: allocations fail, and so do imports of new processes."""
    for pid in case.processes():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            size = psutil.Process(pid).memory_info().vms
            resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def fill_disk(case: Case, sweep: Process) -> None:
    """No room on the disk until the sweep has ended."""
    filler = case.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@dataclass(frozen=True)
class Fault:
    """A way to disturb a sweep.

    Attributes:
        name: for the table.
        act: does it.
        ends: whether it ends the sweep.
        codes: exit codes of the sweep, beside 0 if all jobs were done.
        stops: whether the jobs stop with a checkpoint.
        waits: whether to wait until all processes have ended before the sweep is resumed.
    """

    name: str
    act: Callable[[Case, Process], None]
    ends: bool = True
    codes: Sequence[int] = ()
    stops: bool = False
    waits: bool = True


KILLED = -signal.SIGKILL
INTERRUPTED, TERMINATED = (130, -signal.SIGINT), (143, -signal.SIGTERM)  # the latter while Python starts or ends
FAULTS = (
    Fault("SIGKILL of a job", kill_job, ends=False),
    Fault("SIGKILL of the parent", kill_parent, codes=(KILLED,), stops=True),
    Fault("SIGKILL of the parent, resumed at once", kill_parent, codes=(KILLED,), waits=False),
    Fault("SIGKILL of the parent and a job", kill_both, codes=(KILLED,)),
    Fault("SIGINT", interrupt, codes=INTERRUPTED, stops=True),
    Fault("SIGINT to the process group", interrupt_group, codes=INTERRUPTED, stops=True),
    Fault("SIGINT twice", interrupt_twice, codes=INTERRUPTED),
    Fault("SIGTERM", terminate, codes=TERMINATED, stops=True),
    Fault("no more memory (RLIMIT_AS)", limit_memory, codes=(1, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)),
    Fault("full disk", fill_disk, codes=(1,)),
)
SEVERAL = "two or three of these in a row"
EVERY = 6  # every so many cases have several faults


def faults_of(number: int, random: np.random.Generator) -> list[Fault]:
    """The faults of a case."""
    if number % EVERY == EVERY - 1:
        return [FAULTS[int(index)] for index in random.integers(len(FAULTS), size=random.integers(2, 4))]
    return [FAULTS[(number - number // EVERY) % len(FAULTS)]]


def disturb(case: Case, faults: Sequence[Fault]) -> None:
    """Run the sweep with its faults, then resume it until it is done."""
    sweep, total, reached, before = case.start(), records(case.reference), 0.0, False
    for fault in faults:
        if sweep.poll() is not None:
            sweep = case.start()
        if case.random.random() < 0.4:
            delay = case.random.uniform(0, START_UP)
            moment = f"{delay:.3f} s after a start"
        else:
            reached, delay = case.random.uniform(reached, 1), case.random.exponential(0.05)
            moment = f"{delay:.4f} s after record {int(reached * total)} of {total}"
            while records(case.sweep) < int(reached * total) and sweep.poll() is None:
                time.sleep(0.005)
        time.sleep(delay)
        case.drawn.append(f"{fault.name} {moment}" + ("" if sweep.poll() is None else " (it had ended)"))
        if sweep.poll() is not None:
            case.missed += 1
            continue
        running = {job: _requests(job) for job in case.jobs(["running"])}
        start = time.monotonic()
        fault.act(case, sweep)
        if fault.act is kill_parent and fault.waits:
            _all_notice(case, start, running)
        if fault.ends:
            _ended(case, sweep, fault, start, clean=not before)
        before = True
    code = _wait(sweep, ENDS)
    while code != 0:
        assert case.resumes < RESUMES, f"it exits with {code} after {RESUMES} resumes"
        code = _wait(case.start(), ENDS)
        case.resumes += 1
        _remember(case)
    _none_left(case, time.monotonic(), LEFT)


def _all_notice(case: Case, start: float, running: Mapping[Path, int]) -> None:
    """Wait until all running jobs have noticed that their parent was killed."""
    for job, before in running.items():
        while _requests(job) == before and job in case.jobs(["running"]) and case.processes():
            assert time.monotonic() < start + NOTICED, f"job {job.name} has not noticed after {NOTICED:.0f} s"
            time.sleep(0.02)
    case.noticed.append(round(time.monotonic() - start, 2))


def _requests(job: Path) -> int:
    """How often a job has said that it stops."""
    with contextlib.suppress(OSError):
        return (job / "output.log").read_text().count("stopping with a checkpoint")
    return 0


def _ended(case: Case, sweep: Process, fault: Fault, start: float, *, clean: bool) -> None:
    """Wait for the end of a sweep after a fault, and check what it left."""
    code = _wait(sweep, ENDS)
    if fault.act is fill_disk:
        (case.folder / "filler").unlink()
    case.drawn.append(f"exit code {code}")
    file = _json(case.sweep / "sweep.json")
    if code == 0:
        assert all(job["state"] == "done" for job in file["jobs"]), "exit code 0 before all jobs were done"
    assert code in (0, *fault.codes), f"{fault.name}: exit code {code}"
    if fault.waits:
        end = start if fault.act is kill_parent else time.monotonic()
        _none_left(case, end, LIFELINE if fault.act is kill_parent else LEFT)
        case.gone.append(round(time.monotonic() - start, 2))
        _remember(case)
    if fault.stops and clean:  # after another fault, a job that was not resumed yet still says that it runs
        assert not list(case.jobs(["running"])), f"{fault.name}: no checkpoint of {list(case.jobs(['running']))}"
        states = [job["state"] for job in file.get("jobs", [])]
        assert code == KILLED or "running" not in states, f"{fault.name}: {states}"


def _wait(sweep: Process, seconds: float) -> int:
    try:
        return sweep.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the sweep did not end within {seconds:.0f} s") from None


def _none_left(case: Case, start: float, seconds: float) -> None:
    """Wait until all processes of the case have ended."""
    while left := case.processes():
        assert time.monotonic() < start + seconds, f"{len(left)} processes are left after {seconds:.0f} s"
        time.sleep(0.05)


def _remember(case: Case) -> None:
    """Finished jobs must stay as they are."""
    for job in case.jobs(["done"]):
        content = (job / "run.json").read_bytes()
        assert case.finished.setdefault(job.name, content) == content, f"job {job.name} was trained again"


def check(case: Case) -> None:
    """Compare a sweep that is done with the undisturbed one.

    Raises:
        AssertionError: the sweeps differ; the message says where.
    """
    _remember(case)
    states = [(job["state"], job["reason"]) for job in _json(case.sweep / "sweep.json")["jobs"]]
    assert states == [("done", None)] * len(states), states
    expected = sorted(path.name for path in case.reference.glob("[0-9]*"))
    assert sorted(path.name for path in case.sweep.glob("[0-9]*")) == expected
    assert len(states) == len(expected)
    for name in expected:
        job, beside = case.sweep / name, case.reference / name
        for run, other in zip(members(job), members(beside), strict=True):
            same = (run / "evaluations.jsonl").read_bytes() == (other / "evaluations.jsonl").read_bytes()
            assert same, f"{run}: evaluations differ"
        found = differences(job, beside)
        assert not found, f"job {name} differs: {', '.join(found)}"
        for run in {job, *members(job)}:
            content = _json(run / "run.json")
            assert content.get("status") == "done", f"{run}: {content.get('status')}"
            steps = [resumed["step"] for resumed in content.get("resumed", [])]
            assert steps == sorted(steps), f"{run}: resumed at {steps}"
        assert (job / "train.log").read_text().count("done at step") <= 1, f"job {name} was trained again"
        assert _names(job) == _names(beside), f"job {name}: {_names(job) ^ _names(beside)}"
    left = [path.name for path in case.sweep.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert not left, f"left in the folder of the sweep: {left}"
    links = [
        {path.name: os.readlink(path) for path in (sweep / "tensorboard").iterdir()}
        for sweep in (case.sweep, case.reference)
    ]
    assert links[0] == links[1], f"links: {links}"


def _names(folder: Path) -> set[str]:
    """The files of a job, except those whose names depend on time or on when it was stopped."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if not re.search("tfevents|replay/|checkpoints/step_", name)}


def records(sweep: Path) -> int:
    """Evaluations that all jobs have recorded."""
    found = 0
    for path in [*sweep.glob("*/evaluations.jsonl"), *sweep.glob("[0-9]*/seed_*/evaluations.jsonl")]:
        with contextlib.suppress(OSError):
            found += path.read_bytes().count(b"\n")
    return found


def _json(path: Path) -> dict[str, Any]:
    """The content of a file; empty if it is missing or not whole."""
    with contextlib.suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    return {}


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small tmpfs on a folder.

    Raises:
        UserError: it cannot be mounted.
    """
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise UserError(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def run_case(number: int, seed: int, folder: Path, reference: Path) -> dict[str, Any]:
    """One case: how it went. The folder of a case that passed is removed."""
    random = np.random.default_rng([seed, number])
    faults = faults_of(number, random)
    case = Case(number, random, folder / f"case_{number}", reference)
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir()
    start, load, error = time.monotonic(), os.getloadavg()[0], None
    with contextlib.ExitStack() as opened:
        if any(fault.act is fill_disk for fault in faults):
            opened.enter_context(small_disk(case.folder))
        try:
            disturb(case, faults)
            check(case)
        except Exception as raised:
            error = str(raised) if isinstance(raised, AssertionError) else traceback.format_exc()
            for pid in case.processes():
                _send(pid, signal.SIGKILL)
            shutil.copytree(case.folder, folder / f"failed_{number}", symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(case.folder)
    name = faults[0].name if len(faults) == 1 else SEVERAL
    own = {"case": number, "fault": name, "drawn": case.drawn, "error": error, "resumes": case.resumes}
    own |= {"missed": case.missed, "noticed": case.noticed, "gone": case.gone}
    return own | {"seconds": round(time.monotonic() - start, 1), "load": round(load, 1)}


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """By fault: cases, passed, most `resume=` needed, most seconds until jobs noticed and until no process was left."""
    print(f"\n{'fault':40}{'cases':>7}{'passed':>8}{'resumes':>9}{'noticed':>10}{'gone':>10}")
    for name in [*(fault.name for fault in FAULTS), SEVERAL]:
        own = [result for result in results if result["fault"] == name]
        passed = sum(result["error"] is None for result in own)
        resumes = max((result["resumes"] for result in own), default=0)
        seconds = [[one for result in own for one in result[key]] for key in ("noticed", "gone")]
        most = "".join(f"{max(times):8.1f} s" if times else f"{'-':>10}" for times in seconds)
        print(f"{name:40}{len(own):7}{passed:8}{resumes:9}{most}")
    print(f"{sum(result['missed'] for result in results)} faults came after the sweep had ended")


def main() -> None:
    values = parse(sys.argv[1:], ("seed", "cases", "case", "out"), required=())
    seed = whole(values, "seed", 0, minimum=0)
    numbers: Sequence[int] = range(whole(values, "cases", 60, minimum=1))
    if "case" in values:
        numbers = [whole(values, "case", 0, minimum=0)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs, and theirs, ignore it
    start, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = output_folder(values, "out", temporary).resolve()
        undisturbed = Case(-1, np.random.default_rng(seed), folder / "reference", folder)
        shutil.rmtree(undisturbed.folder, ignore_errors=True)
        undisturbed.folder.mkdir()
        if (code := _wait(undisturbed.start(), ENDS)) != 0:
            raise UserError(f"the undisturbed sweep exits with {code}; see {undisturbed.folder}.txt")
        print(f"undisturbed: {time.monotonic() - start:.1f} s", flush=True)
        for number in numbers:
            result = run_case(number, seed, folder, undisturbed.sweep)
            results.append(result)
            verdict = "ok" if result["error"] is None else f"FAILED: {result['error']}"
            about = "; ".join(result["drawn"])
            facts = f"{result['resumes']} resumes, {result['seconds']} s, load {result['load']}"
            print(f"{number}: {about} [{facts}] {verdict}", flush=True)
            content = {"machine": machine(), "seed": seed, "results": results}
            (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    print_table(results)
    print(f"seed {seed}, {time.monotonic() - start:.0f} s")
    sys.exit(any(result["error"] is not None for result in results))


if __name__ == "__main__":
    run_script("sweep_faults", main)
