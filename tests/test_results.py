"""docs/results.md says what its data says: its tables are recomputed from docs/results/."""

from pathlib import Path

import numpy as np
import pytest

from dpg_cli.config.defaults import completed
from dpg_cli.report import tables
from dpg_cli.report.contents import build
from dpg_cli.report.runs import find, read
from dpg_cli.report.statistics import difference, interval

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
MOST = 2_000_000  # bytes of all data


def runs_of(name):
    found = [read(run, part, completed) for run, part in find([DOCS / "results" / name])]
    assert found
    return found


def curves(name):
    """Steps `(T,)` and returns `(S, T)` of runs that were evaluated at the same steps."""
    runs = runs_of(name)
    return runs[0].steps.tolist(), np.array([run.returns for run in runs])


def spread(name, step, *, bounds=False):
    """`838 ± 642`, with the interval if `bounds`."""
    steps, returns = curves(name)
    at = returns[:, steps.index(step)]
    low, high = interval(at)
    return f"{at.mean():.0f} ± {at.std():.0f}" + (f" [{low:.0f}, {high:.0f}]" if bounds else "")


def test_the_data_is_small_and_whole():
    files = [path for path in (DOCS / "results").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.yaml", "evaluations.jsonl"}
    assert sum(path.stat().st_size for path in files) < MOST


@pytest.mark.parametrize("name", sorted(path.name for path in (DOCS / "results").iterdir()))
def test_the_page_names_its_data(name):
    pages = PAGE + (DOCS / "theory.md").read_text(encoding="utf-8")
    assert f"(results/{name})" in pages


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        ("HalfCheetah-v4", (20_000, 50_000, 100_000)),
        ("InvertedDoublePendulum-v4", (10_000, 20_000, 30_000)),
        ("Pendulum-v1", (4_000, 10_000, 20_000)),
    ],
)
def test_learning_curves(env, steps):
    for step in steps:
        last = step == steps[-1]
        td3, ddpg = (spread(f"learning_curves/{env}_{algo}", step, bounds=last) for algo in ("td3", "ddpg"))
        assert f"| {step:,} | {td3} | {ddpg} |" in PAGE


def test_the_table_of_the_report():
    contents = build(runs_of("learning_curves"), {}, (), 5, None, "steps", lambda: None)
    written = tables.summary_md(contents.rows, contents.best, 5).splitlines()[2:]
    assert len(written) == 6
    for line in written:
        assert line.rpartition("|")[0].rpartition("|")[0] + "|\n" in PAGE  # without hours, which the data lacks


@pytest.mark.parametrize(("env", "algo"), [(e, a) for e in ("HalfCheetah-v4", "Pendulum-v1") for a in ("td3", "ddpg")])
def test_returns_by_seed(env, algo):
    _, returns = curves(f"learning_curves/{env}_{algo}")
    last, best = (" | ".join(f"{value:.0f}" for value in own) for own in (returns[:, -1], returns.max(axis=1)))
    assert f"| {env}, {algo.upper()}, last | {last} |\n| best | {best} |" in PAGE


def test_the_seeds_that_fail_on_the_double_pendulum():
    for algo, name in (("TD3", "td3"), ("DDPG", "ddpg")):
        steps, returns = curves(f"learning_curves/InvertedDoublePendulum-v4_{name}")
        early = " | ".join(f"{value:.0f}" for value in returns[:, steps.index(2_500)])
        final = " | ".join(f"{value:.0f}" if value > 100 else f"**{value:.0f}**" for value in returns[:, -1])
        assert f"| {algo}: return at 2,500 steps | {early} |\n| at 30,000 | {final} |" in PAGE


@pytest.mark.parametrize("step", [100_000, 300_000, 500_000, 700_000])
def test_the_defaults(step):
    steps, returns = curves("defaults")
    at = returns[:, steps.index(step)]
    seeds = " | ".join(f"{value:.0f}" for value in at)
    assert f"| {step:,} | {seeds} | {at.mean():.0f} ± {at.std():.0f} |" in PAGE


@pytest.mark.parametrize("step", [5_000, 10_000, 15_000, 20_000])
def test_the_simplifications_of_the_lecture_notes(step):
    cells = [spread(f"lecture_notes/{name}", step) for name in ("ddpg", "terminal", "first_batch", "notes")]
    assert f"| {step:,} | {' | '.join(cells)} |" in PAGE


@pytest.mark.parametrize(("job", "name"), [(0, "DDPG"), (1, "clipped double Q")])
def test_the_returns_beside_the_overestimation(job, name):
    _, returns = curves(f"overestimation/{job}")
    last = returns[:, -(returns.shape[1] // 3) :].mean(axis=1)
    cells = " | ".join(f"{value:.0f}" for value in (last.mean(), *last))
    assert f"| `eval/return_mean`, {name} | {cells} |" in (DOCS / "theory.md").read_text(encoding="utf-8")


def test_inverted_pendulum():
    steps, returns = curves("inverted_pendulum")
    for seed, own in enumerate(returns):
        best = int(own.argmax())
        cells = f"{own[best]:.1f} | {steps[best]:,} | {own[-1]:.1f} | {own[-3:].mean():.1f}"
        assert f"| {seed} | {cells} |" in PAGE


def last10(name):
    """The mean of each seed's last ten evaluations."""
    _, returns = curves(name)
    return returns[:, -10:].mean(axis=1)


def cells(own, other=None):
    """`1 | 2 | 3 | 2 ± 1 | +1 [0, 2]`: by seed, the mean, and the difference from another group of the same seeds."""
    found = [*(f"{value:.0f}" for value in own), f"{own.mean():.0f} ± {own.std():.0f}"]
    if other is not None:
        gain = difference(dict(enumerate(own)), dict(enumerate(other)))
        found.append(f"{gain.value:+.0f} [{round(gain.low)}, {round(gain.high)}]")
    return " | ".join(found)


@pytest.mark.parametrize(
    ("name", "label"),
    [("n_steps", "`algo.n_steps=3`"), ("lap", "`replay=lap`"), ("pink", "`noise=pink`"), ("all", "all three")],
)
def test_the_switches_on_hopper(name, label):
    assert f"| `algo=td3` | {cells(last10('hopper/td3'))} | | {spread('hopper/td3', 100_000)} |" in PAGE
    gained = cells(last10(f"hopper/{name}"), last10("hopper/td3"))
    assert f"| {label} | {gained} | {spread(f'hopper/{name}', 100_000)} |" in PAGE


@pytest.mark.parametrize("env", ["Ant-v4", "Walker2d-v4"])
def test_simba_beside_ddpg(env):
    ddpg, simba = (f"simba/{env}_{name}" for name in ("ddpg", "simba_ddpg"))
    assert f"| {env}, `algo=ddpg` | {cells(last10(ddpg))} | | {spread(ddpg, 50_000)} |" in PAGE
    gained = cells(last10(simba), last10(ddpg))
    assert f"| {env}, `experiment=simba_ddpg` | {gained} | {spread(simba, 50_000)} |" in PAGE


@pytest.mark.parametrize("step", [50_000, 100_000])
def test_td7(step):
    steps, returns = curves("td7/each_step")
    assert f"| {step:,} | {cells(returns[:, steps.index(step)])} | {spread('defaults', step)} |" in PAGE


def test_learning_from_a_stopped_run():
    behaviour, bc, td3 = (f"offline/{name}" for name in ("behaviour", "td3_bc", "td3"))
    steps, (returns,) = curves(behaviour)
    assert (steps[-1], round(returns[-1]), round(returns.max())) == (75_000, 3302, 3372)
    for step in (25_000, 50_000, 75_000, 100_000):
        assert f"| {step:,} | {spread(bc, step)} | {spread(td3, step)} |" in PAGE
    steps, returns = curves("offline/online")
    for step in ("0, from TD3+BC", "5,000, before the first update", "10,000", "20,000", "50,000"):
        at = returns[:, steps.index(int(step.split(", ")[0].replace(",", "")))]
        assert f"| {step} | {cells(at)} |" in PAGE
    assert f"| TD3+BC | {cells(last10(bc), last10(td3))} |\n| TD3 | {cells(last10(td3))} | |" in PAGE


def test_d4pg_on_pendulum():
    name = "d4pg/Pendulum-v1"
    steps, returns = curves(name)
    for step in (2_000, 4_000, 20_000):
        assert f"| {step:,} | {cells(returns[:, steps.index(step)])} |" in PAGE
    assert f"| mean of the last ten evaluations | {cells(last10(name))} |" in PAGE
    assert (returns[:, steps.index(4_000) :] >= -200).all()
