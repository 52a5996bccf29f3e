"""compile=true on a CPU: the numbers of the ordinary loop, one graph for each kind of update, and an exact resume."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_algorithms
import torch
from commands import SMALL, TOY
from test_trainer import Run, composed, records
from torch._dynamo.utils import counters

from dpg_cli.capture import INSTALL_COMPILER, compile_for
from dpg_cli.cli import build
from dpg_cli.cli.learners import new_algorithm, new_learner
from dpg_cli.compiled_learner import CompiledLearner
from dpg_cli.errors import CompileError, UserError
from dpg_cli.learner import Learner
from dpg_cli.replay import Step

CPU = torch.device("cpu")
TD3 = ["algo=td3", "replay=lap", "algo.n_steps=3", "algo.weight_decay=0.01", "algo.max_grad_norm=0.5"]
SIMBA = ["algo=ddpg", "network=simba", "network.actor_size=8", "network.critic_size=8", "algo.normalize_obs=true"]
D4PG = ["algo=d4pg", "network.actor_sizes=[8]", "network.critic_sizes=[8]", "algo.policy_delay=2"]
FLOAT64 = ["precision=float64", "num_envs=2"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def learner(given, *, compiled):
    c = composed(*given, *FLOAT64).model_copy(update={"compile": compiled})
    made = new_learner(c, new_algorithm(c, 2, 1, CPU), 2, 1, captured=False)
    made.prepare()
    return made


def steps(count):
    g = np.random.default_rng(0)
    for _ in range(count):
        obs, next_obs = g.normal(size=(2, 1, 2, 2))
        ended = g.random((2, 1, 2)) < 0.1
        yield Step(obs, g.uniform(-1, 1, (1, 2, 1)), g.normal(size=(1, 2)), next_obs, *ended)


@needs_compiler
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(TD3, id="td3 mlp lap"),
        pytest.param(SIMBA, id="ddpg simba", marks=pytest.mark.slow),
        pytest.param(D4PG, id="d4pg layer_norm", marks=pytest.mark.slow),
    ],
)
def test_compiled_updates_are_the_ordinary_ones_and_each_kind_is_compiled_once(given):
    """The first compilation of a machine takes half a minute, later ones take their code from torch's cache."""
    counters.clear()
    ours, plain = learner(given, compiled=True), learner(given, compiled=False)
    assert [type(ours), type(plain)] == [CompiledLearner, Learner]
    torch.testing.assert_close(ours.algorithm.state(0), plain.algorithm.state(0), rtol=0, atol=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, step in enumerate(steps(30)):
            for each in (ours, plain):
                each.learn(step, observed=step.obs, updates=2 * (number >= 4), acts_next=False)
    assert ours.algorithm.updates == 52
    assert counters["stats"]["unique_graphs"] == len(ours.algorithm.kinds())
    torch.testing.assert_close(ours.algorithm.state(0), plain.algorithm.state(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.replay.state(0), plain.replay.state(0), rtol=1e-12, atol=1e-12)
    assert ours.averages.take()[0] == pytest.approx(plain.averages.take()[0], rel=1e-10)


@needs_compiler
def test_a_stopped_run_resumes_exactly(tmp_path):
    """The learner of the resumed run is compiled anew. The same seed thus gives the same run, too."""
    given = [*TD3, *FLOAT64, "compile=true", "learning_starts=11", "total_steps=50", "eval.every=25"]
    whole = Run(tmp_path / "whole", *given)
    first = Run(tmp_path / "parts", *given, stop_at=34)
    assert first.updates == 23
    resumed = Run(tmp_path / "parts", *given, start=34)
    assert type(resumed.training.learner) is CompiledLearner
    assert resumed.lines("evaluations.jsonl") == whole.lines("evaluations.jsonl")
    assert records(resumed) == records(whole)
    own, other = (run.training for run in (resumed, whole))
    torch.testing.assert_close(own.algorithm.state(0), other.algorithm.state(0), rtol=0, atol=0)
    torch.testing.assert_close(own.replay.state(0), other.replay.state(0), rtol=0, atol=0)


@pytest.mark.parametrize(
    "given",
    [
        ["hydra.run.dir=run"],
        ["-m", "seed=0,1", "hydra.sweep.dir=run", "hydra/launcher=local"],
    ],
    ids=["run", "sweep"],
)
def test_without_a_compiler_nothing_is_written(tmp_path, given):
    """In a process of its own, since torch remembers the compiler that it has found."""
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {"PATH": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    main = "from dpg_cli.cli.train import main; main()"
    command = [sys.executable, "-c", main, TOY, *SMALL, "device=cpu", "compile=true", *given]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "dpg-train: compile=true: torch.compile needs a C++ compiler; install one (Debian: apt install g++ "
        "python3-dev; macOS: xcode-select --install), or use compile=false\n"
    )
    assert not (tmp_path / "run").exists()


class CppCompileError(Exception):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CppCompileError(
                "Command:\ng++\nOutput:\nIn file included from errors.h:\na.cpp:3: fatal error: Python.h: No such file"
                "\ncompilation terminated."
            ),
            f"the C++ compiler failed (a.cpp:3: fatal error: Python.h: No such file); {INSTALL_COMPILER}, or",
        ),
        (
            CppCompileError("Command:\nclang\nOutput:\nIn file:\na.cpp:3: error: odd\n  a = b\n1 error generated.\n\n"),
            "the C++ compiler failed (a.cpp:3: error: odd);",
        ),
        (
            CppCompileError("Command:\ng++\nOutput:\na line\nvirtual memory exhausted\n\n"),
            "the C++ compiler failed (virtual memory exhausted);",
        ),
        (CppCompileError("Command:\ng++\nOutput:\n"), "the C++ compiler failed (it printed nothing);"),
        (ValueError("odd"), "torch.compile failed (ValueError: odd); report it, or"),
    ],
)
def test_a_compilation_that_fails_is_one_line(monkeypatch, error, message):
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(function, **_):
        raise BackendCompilerFailed(fails, error, None)

    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda: fails(function))
    with pytest.raises(UserError) as raised:
        compile_for(CPU, lambda: None)
    assert str(raised.value) == f"compile=true: {message} use compile=false"


def signal_while_compiling(*_):
    """A signal to the process group ends the compiler too."""
    os.kill(os.getpid(), signal.SIGTERM)
    raise CompileError("compile=true: the C++ compiler failed (it printed nothing); use compile=false")


@pytest.fixture
def checked(monkeypatch):
    """A compiler that is not asked."""
    monkeypatch.setattr(build, "check_compiler", lambda device: None)


def test_a_stop_while_a_new_run_compiles(train, tmp_path, monkeypatch, checked):
    with monkeypatch.context() as patched:
        patched.setattr(CompiledLearner, "prepare", signal_while_compiling)
        code, out, err = train(TOY, *SMALL, "compile=true", "hydra.run.dir=run")
    assert code == 143
    assert out.count("note: compiling the updates;") == 1
    assert err.splitlines() == [
        "dpg-train: stopping with a checkpoint; a second signal stops at once",
        "dpg-train: stopped while compiling, at step 0; dpg-train resume=run trust=true starts it anew",
    ]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["last_step"]) == ("interrupted", 0)
    code, out, _ = train("resume=run", "compile=false", "trust=true")
    assert (code, out.splitlines()[0]) == (0, "nothing was trained yet: starting at step 0")
    assert "compiling" not in out


def test_a_stop_while_a_resumed_run_compiles(train, tmp_path, monkeypatch, checked):
    assert train(TOY, *SMALL, "hydra.run.dir=run")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(CompiledLearner, "prepare", signal_while_compiling)
        code, _, err = train("resume=run", "total_steps=90", "compile=true", "trust=true")
    assert code == 143
    assert err.endswith("dpg-train: stopped while compiling, at step 60; resume with dpg-train resume=run trust=true\n")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["last_step"]) == ("interrupted", 60)
    assert train("resume=run", "compile=false", "trust=true")[0] == 0


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_while_a_job_of_a_sweep_checks_the_compiler(train, tmp_path, monkeypatch, checked, begun):
    arguments = ["-m", TOY, "seed=0,1", *SMALL, "compile=true", "hydra.sweep.dir=sweep"]
    if begun:
        monkeypatch.setattr(CompiledLearner, "prepare", signal_while_compiling)
        assert train(*arguments)[0] == 143
        arguments = ["resume=sweep", "trust=true"]
    asked = []

    def check(device):
        asked.append(device)
        if len(asked) > 1:  # after the check of the sweep
            signal_while_compiling()

    monkeypatch.setattr(build, "check_compiler", check)
    code, out, err = train(*arguments)
    assert code == 143
    assert "C++" not in err
    assert "2 jobs did not start" in out or "stopped" in out
    states = [job["state"] for job in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]]
    assert states == ["pending", "pending"]


def test_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: os.mkdir("/proc/nix"))
    with pytest.raises(UserError, match=r"cannot write its cache .* set TORCHINDUCTOR_CACHE_DIR, or use compile=false"):
        compile_for(CPU, lambda: None)


@needs_compiler
@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="torch cannot compile torch.autograd.grad yet"
)
def test_an_update_by_descend_is_compiled_too(monkeypatch):
    """The form in which new algorithms are written."""
    monkeypatch.setattr(tiny_algorithms.TD3, "update", tiny_algorithms.plain_update)
    given = ["algo=td3", "algo.policy_delay=1"]
    ours, plain = learner(given, compiled=True), learner(given, compiled=False)
    for step in steps(8):
        for each in (ours, plain):
            each.learn(step, observed=step.obs, updates=1, acts_next=False)
    torch.testing.assert_close(ours.algorithm.state(0), plain.algorithm.state(0), rtol=1e-12, atol=1e-12)
