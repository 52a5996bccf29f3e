"""A run's folder belongs to one run; `run.json` says what the run is and how it went."""

import json
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib import metadata

import pytest

import dpg_cli
from dpg_cli.errors import UserError
from dpg_cli.storage.run_dir import RunFile, claim

COMMAND = ["dpg-train", "algo=td3", "seed=3"]


def read(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def rejected(folder, key="hydra.run.dir"):
    with pytest.raises(UserError) as caught:
        claim(folder, key)
    message = str(caught.value)
    assert f"{key}={folder}" in message
    assert "\n" not in message
    return message


def test_a_folder_is_claimed_with_its_parents(tmp_path):
    claim(tmp_path / "a" / "b", "hydra.run.dir")
    assert (tmp_path / "a" / "b").is_dir()
    claim(tmp_path / "a" / "c", "hydra.run.dir")


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_is_claimed_once(tmp_path, key):
    claim(tmp_path / "run", key)
    assert "exists" in rejected(tmp_path / "run", key)


def test_of_many_at_once_one_gets_the_folder(tmp_path):
    def attempt(_):
        try:
            claim(tmp_path / "parent" / "run", "hydra.run.dir")
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(32))) == 1


def test_an_existing_file_is_refused_and_kept(tmp_path):
    (tmp_path / "run").write_text("mine")
    rejected(tmp_path / "run")
    rejected(tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o555)
    if os.access(parent, os.W_OK):  # root may write anywhere but here
        parent = type(tmp_path)("/proc")
    before = sorted(tmp_path.iterdir())
    rejected(parent / "new" / "run")
    assert sorted(tmp_path.iterdir()) == before


def test_a_refused_folder_leaves_no_parents_behind(tmp_path):
    rejected(tmp_path / "new" / ("x" * 300))  # too long for a name
    assert not (tmp_path / "new").exists()


def test_run_json_at_the_start(tmp_path):
    RunFile(tmp_path, COMMAND)
    content = read(tmp_path)
    assert content["status"] == "running"
    assert content["command"] == COMMAND
    assert content["last_step"] == 0
    assert content["ended"] is None
    assert content["error"] is None
    assert datetime.fromisoformat(content["started"]).tzinfo is not None
    versions = {name: metadata.version(name) for name in ("torch", "gymnasium", "mujoco", "numpy")}
    versions |= {"python": platform.python_version(), "dpg_cli": dpg_cli.__version__}
    assert content["versions"] == versions
    assert set(content["git"]) == {"revision", "dirty"}
    assert platform.node() in content["machine"].values()


def test_run_json_names_the_revision_that_the_code_is_from(tmp_path):
    checkout = os.path.dirname(os.path.dirname(dpg_cli.__file__))
    done = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not os.path.exists(os.path.join(checkout, ".git")):
        pytest.skip("the code is not in a git checkout")
    RunFile(tmp_path, COMMAND)
    git = read(tmp_path)["git"]
    assert git["revision"] == done.stdout.strip()
    assert isinstance(git["dirty"], bool)


@pytest.mark.parametrize(
    ("status", "error"), [("done", None), ("interrupted", None), ("failed", "seed 0, step 7: reward is not finite")]
)
def test_run_json_at_the_end(tmp_path, status, error):
    run_file = RunFile(tmp_path, COMMAND)
    start = read(tmp_path)
    run_file.reached(500)
    assert read(tmp_path) == start | {"last_step": 500}
    run_file.end(status, last_step=700, error=error)
    content = read(tmp_path)
    assert datetime.fromisoformat(content["ended"]) >= datetime.fromisoformat(start["started"])
    assert content == start | {"status": status, "ended": content["ended"], "last_step": 700, "error": error}


def test_the_last_step_is_kept_when_the_end_names_none(tmp_path):
    run_file = RunFile(tmp_path, COMMAND)
    run_file.reached(500)
    run_file.end("failed", error="why")
    assert read(tmp_path)["last_step"] == 500


def test_run_json_is_all_that_lies_in_the_folder(tmp_path):
    run_file = RunFile(tmp_path, COMMAND)
    run_file.reached(1)
    run_file.end("done", last_step=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
