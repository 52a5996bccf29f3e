"""The warning that one thread would be faster. What is measured is given here; no test depends on the time."""

import os

import pytest
import torch
from commands import SMALL, TOY, lines

from dpg_cli import config
from dpg_cli.cli import job, thread_check
from dpg_cli.cli.thread_check import ThreadCheck, products_per_second

LARGE = [*SMALL[2:-1], "algo.hidden_sizes=[64,64]", "algo.batch_size=256", "threads=auto"]
BUSY, IDLE = {1: 700.0, 2: 100.0}, {1: 700.0, 2: 1200.0}


@pytest.fixture
def two_cores(monkeypatch):
    """A run that uses two threads, whatever the machine has; `busy` is what is measured in turn."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})

    def measure(rates):
        monkeypatch.setattr(job, "products_per_second", lambda config, obs_dim: rates.__getitem__)

    return measure


def test_a_busy_machine_is_told_once():
    told, rates = [], dict(IDLE)
    check = ThreadCheck(2, rates.__getitem__, told.append)
    check.compare()
    assert told == []
    rates.update(BUSY)
    for speed in (300, 290, 101, 310):
        check.watch(speed)
    assert told == []
    check.watch(99)
    assert len(told) == 1
    assert "700 matrix products per second with one thread, 100 with 2" in told[0]
    assert "threads=1" in told[0]
    for speed in (300, 30, 10, 1):
        check.watch(speed)
    assert len(told) == 1


def test_each_drop_to_a_third_is_measured_once():
    calls = []
    check = ThreadCheck(2, lambda threads: calls.append(threads) or 1.0, print)
    for speed in (300, 90, 80, 31, 100, 29, 40, 33):
        check.watch(speed)
    assert calls == [1, 2] * 2  # at 90 of 300, and at 29 of 100


def test_a_small_difference_is_noise():
    told = []
    ThreadCheck(2, {1: 110.0, 2: 100.0}.__getitem__, told.append).compare()
    assert told == []


@pytest.mark.parametrize("rates", [BUSY, IDLE])
def test_a_run_says_so_at_its_start_and_logs_why(train, tmp_path, two_cores, rates):
    two_cores(rates)
    code, out, err = train(TOY, *LARGE, "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert out.count("note: threads=auto uses 2 threads, and one would be faster now") == (rates is BUSY)
    log = (tmp_path / "run/train.log").read_text()
    assert "threads: 2 (threads=auto: 2 cores, at most 4 threads)" in log
    assert f"threads: 700 matrix products per second with one thread, {rates[2]:,.0f} with 2" in log


def test_what_is_measured_changes_no_number(train, tmp_path, two_cores):
    for name, rates in (("a", BUSY), ("b", IDLE)):
        two_cores(rates)
        assert train(TOY, *LARGE, f"hydra.run.dir={name}")[0] == 0
    a, b = (lines(tmp_path / name / "evaluations.jsonl") for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["threads=2"], "2 (as configured)"),
        (["algo.hidden_sizes=[8]"], "1 (threads=auto: the largest product, 256 x 2 x 8"),
    ],
)
def test_nothing_is_measured_where_there_is_no_choice(train, tmp_path, two_cores, given, why):
    two_cores({})
    hidden = [] if "hidden" in given[0] else ["algo.hidden_sizes=[64,64]"]
    keys = [key for key in LARGE if key != "threads=auto" and "hidden" not in key]
    assert train(TOY, *keys, *hidden, *given, "hydra.run.dir=run")[0] == 0
    assert f"threads: {why}" in (tmp_path / "run/train.log").read_text()


def test_the_measurement_leaves_threads_and_generators_as_they_were(monkeypatch):
    monkeypatch.setattr(thread_check, "SECONDS", 0.001)
    before, state = torch.get_num_threads(), torch.get_rng_state()
    measure = products_per_second(config.validate(config.compose(["env=HalfCheetah-v4", "num_seeds=2"])), 17)
    assert measure(1) > 0
    assert measure(2) > 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
