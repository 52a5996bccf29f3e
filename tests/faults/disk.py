"""A disk that fails, fills or loses what was not synced."""

import errno
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from case import Case
from faulty_disk import CountingDisk, PowerlessDisk
from oracle import differences
from trainings import HERE, PENDULUM

from dpg_cli.cli import job
from dpg_cli.storage import checkpoint

WAYS = {"killed": 17, "power fails": 17, "fails once": 14, "fails from then on": 14}  # of 17 calls 3 remove something
CALLS = [(way, call) for way, number in WAYS.items() for call in range(number)]


def calls(case: Case) -> None:
    """One call to the disk, of one checkpoint of a real training, kills it, loses what is not synced, or fails."""
    way, call = CALLS[case.number]
    error = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)[call % 4]
    name, fails = "Pendulum-v1", "fails" in way and way != "power fails"

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

    first, last = (int(text) for text in (case.reference(name).parent / f"calls {way[0]}").read_text().split())
    assert last - first == WAYS[way], f"a checkpoint takes {last - first} calls"
    case.note(f"call {call}: {way}" + (f" ({errno.errorcode[error]})" if fails else ""))
    command = case.expect(1 if fails else 137, *PENDULUM, HERE, prepare=prepare)
    if fails:
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


def count_calls(way: str) -> None:
    """Have this process write down the first and last call of the checkpoint of step 45."""

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


def full_disk(case: Case) -> None:
    """A real file system of 20 MB that fills."""
    if os.geteuid() != 0:
        case.note("left out: mounting needs root")
        return
    name, mounted = "Pendulum-v1", case.folder / "run"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(mounted)], check=True)
    try:
        pages = [-(-path.stat().st_size // 4096) for path in case.reference(name).rglob("*") if path.is_file()]
        left = 4096 * int(case.random.uniform(0.4, 0.8) * sum(pages))
        (mounted / "filler").write_bytes(bytes(20 * 2**20 - left))
        case.note(f"{left:,} bytes left")
        command = case.expect(1, *PENDULUM, "hydra.run.dir=run/run")
        assert re.search(r"failed: .*[Nn]o space left", command.err()), command.err()
        assert command.err().count("\n") == 1, "more than one line"
        (mounted / "filler").unlink()
        case.expect(0, "resume=run/run")
        found = differences(mounted / "run", case.reference(name))
        assert not found, f"differs: {found}"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
