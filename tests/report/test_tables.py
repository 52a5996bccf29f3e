"""The tables as files."""

import csv
import io
import math
from dataclasses import replace

import pytest
from made_runs import make_run

from dpg_cli.config.defaults import completed
from dpg_cli.report import tables
from dpg_cli.report.groups import group
from dpg_cli.report.published import published_for
from dpg_cli.report.runs import find, read
from dpg_cli.report.scores import Row, compare

ROW = Row("A-v0", "td3", 5, 100_000, 1234.5678, 10, 1000.25, 1500, 1300, 20, 90_000, 1240, 1010, 1490, 0.5)
# The contract of summary.csv.
COLUMNS = (
    "env,group,seeds,steps,last10_mean,last10_std,last10_low,last10_high,max_mean,max_mean_std,max_mean_step,"
    "iqm,iqm_low,iqm_high,hours"
)


def parsed(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_summary_csv_has_plain_numbers_at_full_precision():
    row = replace(ROW, last10_mean=1 / 3, last10_low=math.nan, group='a, "b"')
    text = tables.summary_csv([row])
    assert text.splitlines()[0] == COLUMNS
    (found,) = parsed(text)
    assert float(found["last10_mean"]) == 1 / 3
    assert (found["last10_low"], found["group"], found["max_mean_step"]) == ("", 'a, "b"', "90000")


def test_runs_csv_has_a_row_for_every_run_and_the_threshold(tmp_path):
    make_run(tmp_path / "a", [0, 10, 20], seed=1)
    make_run(tmp_path / "b", [0, 10], seed=1)
    groups = group([read(run, part, completed) for run, part in find([tmp_path])], ())
    found = parsed(tables.runs_csv(groups, 15.0))
    assert [(row["seed"], row["steps"], row["in_numbers"]) for row in found] == [
        ("1", "2000", "True"),
        ("1", "1000", "False"),
    ]
    first = found[0]
    assert (float(first["max"]), first["max_step"], float(first["final"]), float(first["untrained"])) == (
        20,
        "2000",
        20,
        -2.5,
    )
    assert float(first["last10"]) == pytest.approx((-2.5 + 30) / 3)
    assert (first["threshold_step"], float(first["threshold_hours"])) == ("2000", pytest.approx(0.2))
    assert found[1]["threshold_step"] == ""
    assert "threshold_step" not in parsed(tables.runs_csv(groups, None))[0]


def test_differences_csv(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", [0, 10 + seed], seed=seed, algo__tau=0.1)
        make_run(tmp_path / f"b{seed}", [0, 20], seed=seed, algo__tau=0.2)
    groups = group([read(run, part, completed) for run, part in find([tmp_path])], ())
    (found,) = parsed(tables.pairs_csv(compare(groups, 5)))
    assert (found["a"], found["b"], found["seeds"], found["paired"]) == ("tau=0.2", "tau=0.1", "2", "True")
    assert float(found["difference"]) == pytest.approx((10 + 9) / 2)
    assert float(found["better"]) == 1


def test_markdown():
    few = replace(ROW, group="a|b", seeds=3)
    text = tables.summary_md([ROW, few], {"A-v0": "td3"}, 5)
    assert text.splitlines() == [
        "| environment | group | seeds | steps | last10 | its 95% interval | IQM | max_mean | at step | hours |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| A-v0 | td3 | 5 | 100,000 | **1235 ± 10** | [1000, 1500] | 1240 | 1300 ± 20 | 90,000 | 0.50 |",
        "| A-v0 | a\\|b | 3 | 100,000 | 1235 ± 10 | [1000, 1500]\\* | 1240 | 1300 ± 20 | 90,000 | 0.50 |",
        "",
        "\\* fewer than 5 seeds: the interval is too narrow.",
    ]


def test_latex():
    other = replace(ROW, env="B_$%&#{}~^\\<>日", group="noise=ou", seeds=1, last10_low=math.nan)
    text = tables.summary_tex([ROW, replace(ROW, group="ddpg"), other], {"A-v0": "td3"}, 5)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body == [
        r"{\small\setlength{\tabcolsep}{4pt}",
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        r"Environment & Group & Seeds & Steps & last10 & 95\% interval & max\_mean \\",
        r"\midrule",
        r"A-v0 & td3 & 5 & 100k & \textbf{1235 $\pm$ 10} & {[}1000, 1500] & 1300 $\pm$ 20 \\",
        r" & ddpg & 5 & 100k & 1235 $\pm$ 10 & {[}1000, 1500] & 1300 $\pm$ 20 \\",
        r"\midrule",
        r"B\_\$\%\&\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textgreater{}? & "
        r"noise=ou & 1 & 100k & 1235 & -- & 1300 \\",
        r"\bottomrule",
        r"\end{tabular}",
        "}",
    ]


def test_minus_signs_and_the_mark_in_latex():
    row = replace(ROW, seeds=3, last10_mean=-1.5, last10_std=0.25, last10_low=-2, last10_high=-1)
    text = tables.summary_tex([row], {}, 5)
    assert r"$-$1.50 $\pm$ 0.25 & {[}$-$2.00, $-$1.00]* &" in text
    assert r"\multicolumn{7}{l}{\footnotesize * fewer than 5 seeds: the interval is too narrow} \\" in text


def test_no_formulas_and_no_control_characters_in_csv():
    (found,) = parsed(tables.summary_csv([replace(ROW, group="=1+1", env="a\x1bb")]))
    assert (found["group"], found["env"]) == ("'=1+1", "a\\x1bb")


def test_published_numbers_have_the_digits_of_their_source():
    found = {own.convention: tables.as_published(own) for own in published_for("InvertedDoublePendulum-v4")[::-1]}
    assert found["at_step"] == "9,314 ± 2"
    assert found["max_mean"] == "9,337.47 ± 14.96"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (123_456.7, "123,457"),
        (5214.75, "5215"),
        (-99.96, "-100.0"),
        (5.126, "5.13"),
        (0.02134, "0.021"),
        (math.nan, "–"),
    ],
)
def test_numbers(value, shown):
    assert tables.number(value) == shown
