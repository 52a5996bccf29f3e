import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: more threads only wait for each other

import contextlib
import logging
import shutil
import signal
import sys

import pytest
import torch
from moments import at

from dpg_cli import precision
from dpg_cli.cli import device, signals
from dpg_cli.cli import eval as eval_command
from dpg_cli.cli import export as export_command
from dpg_cli.cli import train as train_command
from dpg_cli.config import GROUPS, register

register()  # as the commands do; some tests compose configs without them


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch, tmp_path):
    """`device=auto` is the CPU, whatever the machine has; its cache is nobody's."""
    monkeypatch.setattr(device, "first_gpu", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch):
    """Whether enough is synced is asked of disks that forget the rest (test_disk.py); a real one takes seconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)


@pytest.fixture(autouse=True)
def _no_timing_of_products(monkeypatch):
    """Every training chooses a library for its products; timing them takes longer than the other work of a tiny one."""
    monkeypatch.setattr(precision, "times_as_fast", lambda a, b: 1.0)


@pytest.fixture(autouse=True)
def _no_signal_is_ignored():
    """As in a terminal: a shell without one starts what runs in the background with SIGINT ignored, nohup SIGHUP."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.HANDLED}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run a command in an empty folder: its exit code, what it printed, what it complained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", sys.argv)
    monkeypatch.setattr("sys.path", [*sys.path])  # to which the commands add the working directory
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(logging.root, "handlers", [])

    def run(main, *arguments):
        sys.argv = ["dpg", *arguments]
        logging.root.handlers = []  # as in a process of its own; by now pytest has put some there
        with pytest.raises(SystemExit) as ended:
            main()
        for handler in logging.root.handlers:
            with contextlib.suppress(OSError):  # of a full disk
                handler.close()
        logging.root.handlers = []
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def train(command):
    """Run dpg-train. Of a group that is given several times the last counts: tests change shared arguments."""

    def run(*arguments):
        last = {argument.partition("=")[0]: argument for argument in arguments}
        groups = {group: last[group] for group in GROUPS if group in last}
        return command(
            train_command.main,
            *[argument for argument in arguments if argument is groups.get(argument.partition("=")[0], argument)],
        )

    return run


@pytest.fixture
def evaluate(command):
    return lambda *arguments: command(eval_command.main, *arguments)


@pytest.fixture
def export(command):
    return lambda *arguments: command(export_command.main, *arguments)


@pytest.fixture(scope="session")
def kept():
    """Runs that several tests look at or resume, by what made them."""
    return {}


@pytest.fixture
def trained(train, kept, tmp_path_factory):
    """The folder of a whole run with these arguments, which only the first that asks must train: not to be changed."""

    def run(*arguments):
        if arguments not in kept:
            folder = tmp_path_factory.mktemp("trained") / "run"
            assert train(*arguments, f"hydra.run.dir={folder}")[0] == 0
            kept[arguments] = folder
        return kept[arguments]

    return run


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of such a run, `run`, to do with as one likes."""
    return lambda *arguments: shutil.copytree(trained(*arguments), tmp_path / "run", symlinks=True)


@pytest.fixture
def signalled(train, monkeypatch):
    """Train, with real signals to this process at a moment; more than one is sent at once."""

    def run(moment, call, numbers, *arguments):
        def send():
            for number in numbers:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(signals, "GRACE", -1.0)
            at(moment, call, send, patch.setattr)
            return train(*arguments)

    return run
