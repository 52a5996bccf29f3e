"""The process of one job of a sweep: `python -m dpg_cli.cli.sweep_job REPORTS LIFELINE`, two file descriptors.

It imports torch at once, then waits on stdin for its job, a JSON document. So the next job can begin as soon as one
has ended. It sends JSON lines to REPORTS, and ends with a checkpoint if LIFELINE ends.
"""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from dpg_cli.cli import signals
from dpg_cli.cli.job_process import LOG, connect, receive
from dpg_cli.errors import one_line

if TYPE_CHECKING:
    from dpg_cli.cli.job import Result

SCORED = 10  # last evaluations of each seed, which make its score


def main() -> None:
    """Run the job. Its exit code is that of `job.run`."""
    stopping = Event()

    def request_stop() -> None:
        if not stopping.is_set():  # a second request would stop it without a checkpoint
            os.kill(os.getpid(), signal.SIGTERM)

    signals.remember()
    reports, lifeline = connect(request_stop)
    from dpg_cli.cli import sweep_task  # takes seconds, with torch

    document = receive()

    def report(kind: str, **values: Any) -> None:
        if kind == "stopping":
            stopping.set()
        (reports.offer if kind == "progress" else reports.send)(kind, **values)

    try:
        result = _run(document, sweep_task.run_job, report)
        reports.send("result", **_message(result))
        code = result.exit_code
    except BaseException as error:  # a simulator's SystemExit too
        traceback.print_exc()
        reason = one_line(f"{type(error).__name__}: {error}")
        reports.send("result", exit_code=1, score=None, error=reason, outcome=None)
        code = 1
    lifeline.leave()
    sys.exit(code)


def _run(document: Mapping[str, Any], run_job: Callable[..., "Result"], report: Callable[..., None]) -> "Result":
    from hydra.core.utils import configure_log
    from omegaconf import OmegaConf

    from dpg_cli import config as configs
    from dpg_cli.cli.names import Label
    from dpg_cli.errors import DiskError, UserError

    folder = Path(document["folder"])
    _redirect(folder / LOG)
    os.environ.update(document["environ"])
    if document["cores"] is not None:
        _restrict(document["cores"])
    if document["logging"] is not None:
        configure_log(OmegaConf.create(document["logging"]["config"]), document["logging"]["verbose"])
    sys.argv = list(document["command"])
    try:
        config = configs.load(document["config"])
        return run_job(config, folder, document["command"], Label(*document["label"]), report=report)
    except (UserError, DiskError) as error:
        from dpg_cli.cli.job import Result

        message = one_line(error)
        print(f"dpg-train: failed: {message}", file=sys.stderr)
        return Result(1, error=message)


def _redirect(path: Path) -> None:
    """Append everything that this process prints to a file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _restrict(cores: list[int]) -> None:
    """Use these cores only, with all threads that imported modules have started."""
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cores)


def _message(result: "Result") -> dict[str, Any]:
    """The result for the main process, with the evaluations that make its score."""
    outcome, kept = result.outcome, None
    if outcome is not None:
        evaluations = [own[-SCORED:] for own in outcome.evaluations]
        kept = {"evaluations": evaluations, "evaluated": outcome.evaluated, "step": outcome.step}
        kept["interrupted"] = outcome.interrupted
    score = None if outcome is None else outcome.score()
    return {"exit_code": result.exit_code, "score": score, "error": result.error, "outcome": kept}


if __name__ == "__main__":
    main()
