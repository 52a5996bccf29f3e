import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: more threads only wait for each other

import logging
import sys

import pytest
import torch
from moments import at

from dpg_cli.cli import eval as eval_command
from dpg_cli.cli import signals
from dpg_cli.cli import train as train_command


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run a command in an empty folder: its exit code, what it printed, what it complained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(logging.root, "handlers", [])  # Hydra puts its own there, and pytest another

    def run(main, *arguments):
        sys.argv = ["dpg", *arguments]
        logging.root.handlers = []
        with pytest.raises(SystemExit) as ended:
            main()
        for handler in logging.root.handlers:
            handler.close()
        logging.root.handlers = []
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def train(command):
    return lambda *arguments: command(train_command.main, *arguments)


@pytest.fixture
def evaluate(command):
    return lambda *arguments: command(eval_command.main, *arguments)


WHOLE = {}


@pytest.fixture
def whole(train, tmp_path_factory):
    """The run that meets no fault, trained once."""

    def run(*arguments):
        if arguments not in WHOLE:
            WHOLE[arguments] = tmp_path_factory.mktemp("whole") / "run"
            assert train(*arguments, f"hydra.run.dir={WHOLE[arguments]}")[0] == 0
        return WHOLE[arguments]

    return run


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
