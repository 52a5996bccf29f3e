"""What a process may use of its machine, where Linux's own sources are missing: as on macOS, and on Windows."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from commands import SMALL, TOY, lines

from dpg_cli.cli import machine

WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None  # importing it raises ImportError
sys.argv = ["dpg", *{arguments}]
from dpg_cli.cli.{module} import main
main()
"""


def test_a_container_has_the_cores_that_it_is_allowed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for limit, count in (("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("9900000 100000", 64)):
        monkeypatch.setattr(Path, "read_text", lambda *_, limit=limit, **__: limit)
        assert machine.cores() == count


def test_a_container_has_the_memory_that_it_is_allowed(monkeypatch, tmp_path):
    for name, text in {"memory.max": "1000", "memory.current": "600", "memory.stat": "inactive_file 50"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.available_memory() == 450
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "nothing")
    assert machine.available_memory() == 450


@pytest.fixture
def macos(monkeypatch):
    """Neither /proc nor /sys, and no affinity of processes; 6 cores and 3 GiB of free memory."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(psutil, "cpu_count", lambda: 6)
    memory = psutil.virtual_memory()._replace(available=3 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    opened = builtins.open

    def guarded(path, *arguments, **named):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(path)
        return opened(path, *arguments, **named)

    monkeypatch.setattr("io.open", guarded)  # pathlib's
    monkeypatch.setattr(builtins, "open", guarded)


def test_without_proc_and_affinity(macos):
    assert (machine.affinity(), machine.cores(), machine.available_memory()) == (6, 6, 3 * 2**30)


def test_a_run_without_proc_and_affinity(macos, train, tmp_path):
    arguments = [argument for argument in SMALL if not argument.startswith("threads")]
    code, _, err = train(TOY, *arguments, "env_threads=2", "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert train("resume=run", "total_steps=80", "trust=true")[0] == 0
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["step"] == 80


def test_without_proc_too_large_a_run_is_refused(macos, train):
    code, _, err = train(TOY, *SMALL, "buffer_size=1e9", "total_steps=9e8")
    assert code == 2
    assert "3.0 GiB of memory are free" in err


def test_memory_that_linux_does_not_tell(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")  # of a kernel before 3.14
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert 0 < machine.available_memory() < psutil.virtual_memory().total


def test_linux_without_proc(monkeypatch, tmp_path):
    def missing():
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", missing)
    assert machine.available_memory() > 0


@pytest.mark.parametrize("module", ["train", "eval"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["run=x"]])
def test_windows_gets_one_line(module, arguments):
    program = WITHOUT_FCNTL.format(arguments=arguments, module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    line = f"dpg-{module}: Windows is not supported; use dpg-cli in WSL, the Windows Subsystem for Linux\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
