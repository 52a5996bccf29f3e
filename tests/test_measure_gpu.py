"""scripts/measure/gpu.py, on a CPU by the stand-in for graphs: what it compares, and what it rejects."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from dpg_cli import config

PATH = Path(__file__).parents[1] / "scripts" / "measure" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("measure_gpu", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config.register()
    monkeypatch.setattr(module, "GPU", "cpu")
    monkeypatch.setattr(module, "COMPARED", 20)
    return module


@pytest.fixture
def script(gpu, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["gpu.py", *arguments])
        monkeypatch.setattr("sys.path", [*sys.path])
        try:
            gpu.main()
        except SystemExit as ended:
            return ended.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("overrides", [["td3", 2], ["ddpg", 2], ["ddpg", 1, "algo.normalize_obs=true"]])
def test_the_same_device_differs_in_nothing(gpu, overrides):
    assert gpu.against_the_cpu(*overrides) == 0


def test_graphs_and_moved_states_differ_in_nothing(gpu):
    assert gpu.against_single_operations() == 0
    assert gpu.moved() == 0
    assert gpu.large_replay(2, 3_000) == 0


def test_a_difference_is_seen(gpu, monkeypatch):
    new = gpu.new_learner

    def new_learner(device, *overrides, captured):
        learner = new(device, *overrides, captured=captured)
        if captured:
            learner.algorithm.critic.flat.data[0] += 1e-6
        return learner

    monkeypatch.setattr(gpu, "new_learner", new_learner)
    assert gpu.against_the_cpu("td3", seeds=1) > 1e-8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parts=fast"], "gpu.py: parts=fast: no part fast; choose from right, steps, updates, kernels, training"),
        (["part=right"], "gpu.py: part: unknown key; did you mean parts?"),
        (["out=nowhere/it.json"], "gpu.py: out=nowhere/it.json: No such file or directory"),
    ],
)
def test_mistakes_are_refused_in_one_line(script, arguments, message):
    assert script(*arguments) == (2, "", message + "\n")


def test_a_wrong_gpu_is_the_scripts_failure(script, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", dict)
    monkeypatch.setattr(gpu, "against_the_cpu", lambda algo, *_: 1e-14 if algo == "td3" else 1e-5)
    for name in ("against_single_operations", "moved", "large_replay"):
        monkeypatch.setattr(gpu, name, lambda *_: 0.0)
    monkeypatch.setattr(gpu, "resumed_is_equal", lambda: False)
    code, out, err = script("parts=right")
    assert code == 1
    names = [f"GPU against CPU, ddpg, seeds={seeds}" for seeds in (1, 4)]
    names += ["normalised observations: GPU against CPU", "resumed against uninterrupted"]
    assert err == f"gpu.py: wrong: {', '.join(names)}\n"
    assert "| GPU against CPU, td3, seeds=1 | largest difference 1e-14 |" in out


def test_help_says_how_to_carry_packages_along(script):
    code, out, _ = script("--help")
    assert code == 0
    assert "pip download" in out
