"""The runs that met no fault, with which all cases are compared."""

from pathlib import Path

from disk import count_calls
from moments import at
from trainings import HERE, PENDULUM, RUNS, Command, suicide


def train_references(references: Path) -> None:
    """Train them, unless they are there already, in a folder given by hand."""
    if (references / "done").exists():
        return
    for name in RUNS:
        folder = references / name
        folder.mkdir(parents=True, exist_ok=True)
        with Command(folder, [*RUNS[name], HERE]) as command:
            assert command.wait() == 0, command.err()
    long = references / "longer"
    long.mkdir()
    with Command(long, [*PENDULUM, "total_steps=260", HERE]) as command:
        assert command.wait() == 0, command.err()
    folder = references / "Pendulum-v1"
    with Command(folder, [*PENDULUM, "hydra.run.dir=killed"], lambda: at("step", 100, suicide, setattr)) as command:
        assert command.wait() == 137, command.err()
    for way in "kpf":  # how many calls the checkpoint of step 45 takes, and which; removing is one for a crash alone
        with Command(folder, [*PENDULUM, f"hydra.run.dir=counted_{way}"], lambda way=way: count_calls(way)) as command:
            assert command.wait() == 0, command.err()
    (references / "done").touch()
