"""dpg-export: its keys, its messages, and what it writes."""

import importlib.util
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import toy_envs
from commands import SMALL, TOY
from policy_files import arguments_of, removed, rewrite

from dpg_cli.errors import ExportError
from dpg_cli.export import FORMATS, verification
from dpg_cli.policy import load_policy
from dpg_cli.storage import checkpoint
from dpg_cli.storage.atomic import Disk
from dpg_cli.storage.shards import some_observations

KNOWN = "env=Toy/Reach-v0"  # needs no module, so no trust
needs_c = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@pytest.fixture
def run(trained):
    return trained(TOY, *SMALL)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name not in ("cache", "run"))


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_help_begins_with_examples(export, asked):
    code, out, err = export(*asked)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "dpg-export: write a trained policy to a file for other programs."
    assert out.splitlines()[2] == "Examples"
    assert max(map(len, out.splitlines())) <= 120


def test_versions(export):
    assert export("--version")[1].startswith("dpg-cli ")


@pytest.mark.parametrize(
    ("arguments", "suffix", "runner"),
    [
        pytest.param(
            [], ".onnx", "onnxruntime", marks=pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="no")
        ),
        (["format=pt2", "checkpoint=latest"], ".pt2", "torch"),
        pytest.param(["format=c", "checkpoint=30"], ".h", "the C compiler", marks=needs_c),
    ],
)
def test_a_file_is_written_and_verified_and_not_overwritten(run, export, tmp_path, arguments, suffix, runner):
    code, out, err = export(str(run), *arguments)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"policy{suffix}: toy_envs:Toy/Reach-v0, checkpoint ")
    assert second.startswith(f"verified with {runner} on 60 observations of the replay: largest difference ")
    assert files(tmp_path) == [f"policy{suffix}"]
    before = (tmp_path / f"policy{suffix}").read_bytes()
    again = export(f"run={run}", *arguments)
    message = f"dpg-export: out=policy{suffix}: already exists; force=true overwrites it\n"
    assert again == (2, "", message)
    assert (tmp_path / f"policy{suffix}").read_bytes() == before
    assert export(f"run={run}", *arguments, "force=true")[0] == 0


def test_a_file_elsewhere_and_the_name_of_its_function(run, export, tmp_path):
    code, out, _ = export(str(run), "format=c", "out=new/folder/robot.h")
    assert (code, out.split(":")[0]) == (0, "new/folder/robot.h")
    assert "void robot_act(const float *obs, float *action);" in (tmp_path / "new" / "folder" / "robot.h").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fromat=c"], "fromat: unknown key; did you mean format?"),
        (["format=tflite"], "format=tflite: should be one of onnx, pt2, c"),
        (["force=1"], "force=1: should be true or false"),
        (["trust=yes"], "trust=yes: should be true or false"),
        (["checkpoint=7"], "checkpoint=7: no such checkpoint; there are latest, best, "),
        (["out=a.h"], "out=a.h: add format=c; without it, the format is onnx (.onnx)"),
        (["format=pt2", "out=a.onnx"], "out=a.onnx: must end in .pt2"),
        (["format=c", "out=my-robot.h"], "my_robot.h would do"),
        (["format=c", "out=2wheels.h"], "policy_2wheels.h would do"),
        (["format=c", "out=ü.h"], "begins with a letter; policy.h would do"),
        (["out="], "out=: is empty; name a file that ends in .onnx"),
        (["out=.."], "out=..: is a folder; name a file in it that ends in .onnx"),
        (["format=c", "out=new/my-robot.h"], "my_robot.h would do"),
        (["format=c", "out=/proc/nix/a.h"], "out=/proc/nix/a.h: No such file"),
        (["format=c", "out=~/a.h"], "~ is not expanded"),
        (["format=c", "format=c"], "format: given twice"),
    ],
)
def test_mistakes(run, export, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    code, out, err = export(str(run), *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert files(tmp_path) == []


def test_what_is_no_run(export, trained, tmp_path):
    for folder, message in [
        ("nix", "nix: no such folder"),
        (tmp_path, "not a run folder: it has no config.yaml"),
        (trained(TOY, *SMALL, "num_seeds=2"), "holds several seeds, seed_0, seed_1; load one of them, such as"),
    ]:
        code, _, err = export(str(folder), "format=c")
        assert (code, message in err, len(err.splitlines())) == (2, True, 1)
    assert export("format=c")[2] == "dpg-export: run: missing\n"


def test_a_damaged_policy_file(finished, export, tmp_path):
    run = finished(TOY, *SMALL)
    policy = checkpoint.find(run, "best") / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:-1])
    code, _, err = export("run", "format=c")
    assert (code, "damaged checkpoint" in err, len(err.splitlines())) == (2, True, 1)
    assert files(tmp_path) == []


def test_a_policy_of_an_earlier_version(finished, export):
    rewrite(checkpoint.find(finished(TOY, *SMALL), "best"), removed)
    code, _, err = export("run", "format=c")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "wrote this policy, without the metadata" in err
    assert "dpg-train resume=run total_steps=61" in err


def test_a_missing_extra(run, export, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    needs = "needs onnx, onnxscript, onnxruntime; pip install -e '.[export]' in the clone of dpg-cli"
    assert export(str(run)) == (2, "", f"dpg-export: format=onnx: {needs}\n")
    assert export(str(run), "format=c")[0] == 0


def test_a_file_that_acts_otherwise(run, export, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "TOLERANCE", -1.0)
    code, out, err = export(str(run), "format=pt2")
    assert (code, out) == (1, "")
    assert err.startswith(f"dpg-export: failed: {tmp_path / 'policy.pt2'} was not kept: its actions differ")
    assert files(tmp_path) == []


def test_without_a_compiler(run, export, monkeypatch):
    from dpg_cli.export import c

    monkeypatch.setattr(c, "COMPILERS", ("nix",))
    code, out, _ = export(str(run), "format=c")
    assert code == 0
    assert out.splitlines()[1].startswith("not verified: there is no working C compiler here")


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["write", "run"])
@pytest.mark.parametrize("becomes", [None, ImportError, ExportError])
def test_a_signal_leaves_no_file(run, export, tmp_path, monkeypatch, number, moment, becomes):
    """A library may turn the exception of a handler into one of its own."""

    def interrupted(*_):
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise (becomes("other") if becomes else error) from error

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], **{moment: interrupted}))
    assert export(str(run), "format=pt2", "out=new/a.pt2") == (128 + number, "", "")
    assert files(tmp_path) == []


def test_a_signal_after_the_check_comes_too_late(run, export, tmp_path, monkeypatch):
    monkeypatch.setattr(Disk, "rename", lambda *_: (os.kill(os.getpid(), signal.SIGINT), os.rename(*_[1:])))
    assert export(str(run), "format=pt2")[::2] == (0, "")
    assert files(tmp_path) == ["policy.pt2"]


# --- observations for the check ---


def test_without_a_replay_the_environment_gives_the_observations(finished, export):
    run = finished(KNOWN, *SMALL)
    shutil.rmtree(run / "replay")
    code, out, err = export("run", "format=pt2")
    assert (code, err) == (0, "")
    assert "on 1,000 observations of evaluation episodes" in out


def test_an_environment_that_is_a_module_needs_trust(finished, export, tmp_path):
    run = finished(TOY, *SMALL)
    shutil.rmtree(run / "replay")
    code, _, err = export("run", "format=pt2")
    assert code == 2
    assert "env.id=toy_envs:Toy/Reach-v0: this would import code that the run folder names; if you trust it" in err
    assert files(tmp_path) == []
    assert export("run", "format=pt2", "trust=true")[0] == 0


def test_an_environment_that_raises_is_named_and_closed(finished, export, tmp_path, monkeypatch):
    run = finished(TOY, *SMALL)
    shutil.rmtree(run / "replay")
    closed = []
    monkeypatch.setattr(toy_envs.Reach, "step", lambda self, action: 1 / 0)
    monkeypatch.setattr(toy_envs.Reach, "close", lambda self: closed.append(self))
    raised = "the environment Reach raised ZeroDivisionError: division by zero"
    assert export("run", "format=pt2", "trust=true") == (1, "", f"dpg-export: failed: {raised}\n")
    assert len(closed) == 1
    assert files(tmp_path) == []


def test_observations_beyond_float32_are_left_out(finished, export, monkeypatch):
    """The run is in float64, exported files are in float32."""
    run = finished(*arguments_of("float64"))
    shutil.rmtree(run / "replay")
    monkeypatch.setattr(toy_envs.Reach, "_obs", lambda self: np.array([1e300 if self.steps % 2 else 0.5, 1.0]))
    assert "on 5" in export("run", "format=pt2", "trust=true")[1]
    monkeypatch.setattr(toy_envs.Reach, "_obs", lambda self: np.array([1e300, 1.0]))
    code, _, err = export("run", "format=pt2", "trust=true", "force=true")
    assert (code, "no observation is finite in float32" in err, len(err.splitlines())) == (1, True, 1)


@pytest.mark.parametrize("name", ["a dictionary and unequal float64 bounds", "float64", "an action without axes"])
def test_episodes_of_other_spaces(finished, export, name):
    run = finished(*arguments_of(name))
    shutil.rmtree(run / "replay")
    assert export("run", "format=pt2", "trust=true")[0] == 0


def test_observations_are_from_all_over_the_replay(trained):
    run = trained(TOY, *SMALL)
    stored = np.concatenate([np.load(path)["obs"] for path in sorted((run / "replay").glob("*.npy"))])
    np.testing.assert_array_equal(some_observations(run / "replay", 2, 1_000), stored)
    some = some_observations(run / "replay", 2, 4)
    np.testing.assert_array_equal(some, stored[[0, 19, 39, 59]])
    assert some_observations(run / "nix", 2, 4).shape == (0, 2)
    assert load_policy(run).obs_dim == 2
