"""dpg-train resume=SWEEP_DIR of a stranger's sweep: nothing in it runs code, leads out of it, or blocks."""

import json
import os
import shutil

import pytest
import toy_envs  # noqa: F401 - registers Toy/Reach-v0
from commands import SMALL

from dpg_cli.cli.sweep_options import launcher_of, to_give_again
from dpg_cli.config import without_hydra
from dpg_cli.errors import UserError
from dpg_cli.sweeps.record import SweepFile


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the sweep is kept that all tests copy."""
    return tmp_path_factory.mktemp("made") / "sweep"


@pytest.fixture
def sweep(train, tmp_path, made):
    """A sweep of two jobs, of which the second is missing; a function that changes its record."""
    folder = tmp_path / "sweep"
    if made.exists():
        shutil.copytree(made, folder, symlinks=True)
    else:
        assert train("-m", "env=Toy/Reach-v0", "seed=3,4", *SMALL, "hydra.sweep.dir=sweep")[0] == 0
        shutil.rmtree(folder / "1")
        shutil.copytree(folder, made, symlinks=True)

    def change(**values):
        content = json.loads((folder / "sweep.json").read_text())
        content["jobs"][1] |= {key: own for key, own in values.items() if key in content["jobs"][1]}
        content |= {key: own for key, own in values.items() if key in content}
        (folder / "sweep.json").write_text(json.dumps(content))

    change.folder = folder
    return change


@pytest.mark.parametrize("launcher", ["../../evil", "local,slurm", "evil", "", "{_target_:evil.X}", "\x1b[31m"])
def test_only_known_launchers_are_taken_over(train, sweep, launcher):
    sweep(launcher=launcher)
    code, _, err = train("resume=sweep")
    assert code == 2
    assert "add hydra/launcher= to this command" in err
    assert err.isprintable() or err.strip().isprintable()
    assert train("resume=sweep", "hydra/launcher=basic")[0] == 0


@pytest.mark.parametrize(
    "option",
    [
        "partition={_target_:evil.X}",
        "account=a\\'\n touch pwned\n#",
        "account='a b'",
        "exclude=${oc.env:HOME}",
        "partition=\x1b[31m",
        "setup=[evil]",
        "_target_=evil.X",
        "ray.init.address=evil:1",
        "cpus_per_task=[1,{_target_:evil.X}]",
    ],
)
def test_only_plain_options_are_taken_over(tmp_path, capsys, option):
    command = ["hydra/launcher=slurm", f"hydra.launcher.{option}", "hydra.launcher.qos=long,short", "seed=0"]
    assert launcher_of(SweepFile(tmp_path, command, "slurm", [])) == [
        "hydra/launcher=slurm",
        "hydra.launcher.qos='long,short'",
    ]
    out = capsys.readouterr().out
    assert "is not taken from the sweep's command" in out
    assert out.strip().isprintable()


def test_a_launcher_that_is_not_known_is_named(tmp_path):
    with pytest.raises(UserError, match="hydra/launcher=mine; add hydra/launcher="):
        launcher_of(SweepFile(tmp_path, [], "mine", []))


def test_options_that_are_not_taken_over_are_in_the_line_that_resumes():
    command = ["-m", "hydra.launcher.setup=['module load python']", "+hydra.launcher.partition=long", "seed=0"]
    assert to_give_again(command) == " 'hydra.launcher.setup=['\"'\"'module load python'\"'\"']'"


def test_overrides_of_hydra_itself_are_not_composed_again():
    safe = ["seed=0", "algo=td3", "hydra.searchpath=[/a/folder]", "hydrate=1"]
    evil = [
        "hydra.searchpath=[pkg://evil]",
        "hydra/launcher=evil",
        "+hydra.x=1",
        "++hydra/a@b=c",
        "~hydra.run",
        "hydra=1",
    ]
    assert without_hydra([*safe, *evil]) == safe


@pytest.mark.parametrize(
    "folder", ["../out", "/out", "${oc.env:HOME}/x", "a\0b", "\ud800", "x" * 300, "", ".", "a\nb", 1, ["a"]]
)
def test_folders_of_jobs_stay_inside(train, sweep, tmp_path, folder):
    sweep(folder=folder)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(sweep.folder)}
    code, _, err = train("resume=sweep")
    assert code == 2
    assert "not a sweep that this version can read" in err
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(sweep.folder)} == before


@pytest.mark.parametrize(
    "name", ["1", ".lock", "multirun.yaml", "tensorboard", ".submitit", "1/output.log", "1/.hydra"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_rejected(train, sweep, tmp_path, name, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = sweep.folder / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        path.rename(tmp_path / "was there")
    path.unlink(missing_ok=True)
    path.symlink_to(outside) if kind == "link" else os.mkfifo(path)
    code, _, err = train("resume=sweep")
    assert code == 2
    assert "is a link" in err if kind == "link" else "is not a folder" in err or "is neither a file nor a folder" in err
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("overrides", [["a"] * 2_000, ["a" * 20_000], [1], "a", None])
def test_odd_overrides_are_rejected(train, sweep, overrides):
    sweep(overrides=overrides)
    code, _, err = train("resume=sweep")
    assert code == 2
    assert "not a sweep that this version can read" in err


def test_a_copy_of_a_job_is_no_job(train, sweep):
    for name in ("0_backup", "other"):
        os.system(f"cp -a {sweep.folder / '0'} {sweep.folder / name}")
    assert train("resume=sweep")[0] == 0
    jobs = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert [(job["number"], job["folder"]) for job in jobs] == [(0, "0"), (1, "1")]


def test_fewer_steps_are_rejected(train, sweep):
    code, _, err = train("resume=sweep", "total_steps=50")
    assert code == 2
    assert "total_steps=50: the sweep has 60 already" in err


def test_a_sweep_that_is_moved_while_it_runs_ends(train, monkeypatch, tmp_path):
    from dpg_cli.cli import sweep as sweeps

    run_job = sweeps.run_job

    def move_after(*arguments, **named):
        result = run_job(*arguments, **named)
        (tmp_path / "sweep").rename(tmp_path / "moved")
        return result

    monkeypatch.setattr(sweeps, "run_job", move_after)
    code, _, err = train("-m", "env=Toy/Reach-v0", "seed=3,4", *SMALL, "hydra.sweep.dir=sweep")
    assert code == 1
    assert "the sweep's folder was moved or deleted" in err
    assert not list(tmp_path.glob("sweep/*/checkpoints"))
