"""The pages that are made from the code, and the commands that a page shows."""

import itertools
import subprocess
import sys

import keys
import pytest
import tutorial

from dpg_cli.cli.resume import CHANGEABLE

BLOCKS = list(tutorial.blocks(tutorial.PAGE.read_text(encoding="utf-8")))
SHELL = [block for block in BLOCKS if block.language == "sh" and block.mode != "install"]
COMMANDS = [words for block in SHELL for words in tutorial.commands(block)]
COMMENTED = [path for pattern in ("*.yaml", "algo/*.yaml", "noise/*.yaml") for path in keys.CONFIGS.glob(pattern)]


def test_the_page_of_keys_is_up_to_date():
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page(), "python scripts/keys.py writes docs/keys.md"


@pytest.mark.parametrize("path", COMMENTED, ids=lambda path: path.stem)
def test_every_key_has_a_comment(path):
    found = list(keys.keys(path))
    assert found
    assert [key.name for key in found if not key.comment] == []


@pytest.mark.parametrize("path", [*keys.CONFIGS.glob("experiment/*.yaml")], ids=lambda path: path.stem)
def test_every_preset_says_what_it_is(path):
    assert keys.header(path)


def test_a_key_is_what_its_line_says(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text('# What.\n# More.\na: {}  # one\nb:\n  c: "#"  # two\n  d: [1, 2]\ndefaults: [x]\n')
    assert list(keys.keys(path)) == [("a", "{}", "one"), ("b.c", '"#"', "two"), ("b.d", "[1, 2]", "")]
    assert keys.header(path) == "What. More."


def combinations(words):
    """The arguments of each job of a sweep over values separated by commas; one if it is none."""
    if "-m" not in words:
        return [words]
    axes = [word.partition("=") for word in words if word != "-m"]
    return itertools.product(*([f"{key}={value}" for value in values.split(",")] for key, _, values in axes))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_tutorial_has_only_keys_and_values_that_exist(words, train, evaluate, tmp_path):
    for block in BLOCKS:
        if block.language not in ("sh", "text"):
            tutorial.write_file(block, tmp_path)
    command, *words = itertools.dropwhile(lambda word: word.startswith("PYTHONPATH="), words)
    if command == "dpg-eval":
        assert "unknown key" not in evaluate(*words)[2]
    elif command == "dpg-train" and words[0].startswith("resume="):
        assert {word.partition("=")[0] for word in words[1:]} <= {*CHANGEABLE, "trust"}
    elif command == "dpg-train":
        for job in combinations(words):
            code, _, error = train(*job, "--cfg", "job", "--resolve")
            assert code == 0, error
    else:
        assert command in ("tensorboard", "cmp", "python")


def test_what_is_shown_is_compared_without_what_depends_on_the_machine():
    printed = ["0:01  0 of 9 steps  1.5", "b", "0:02  9 of 9 steps  –", "  d   -3.0"]
    first = "0:10  0 of 9 steps  7"
    assert tutorial.filled([first, "...", "1:00  9 of 9 steps  8", "d 3"], printed) == [
        *(printed[0], "...", printed[2], printed[3])
    ]
    assert tutorial.filled([first, "..."], printed) == [printed[0], "..."]
    for shown in ([first], ["b", "..."], ["...", "e"], ["...", "b"], ["0:10  9 of 9 steps  7", "..."]):
        assert tutorial.filled(shown, printed) is None


@pytest.mark.parametrize(
    ("line", "skipped"),
    [
        ("04:13:35  836 of 1,000 steps  5 steps/s  0:00:30 left  last return 14.5", True),
        ("04:13:35  836 of 1,000 steps  5 steps/s  0:00:30 left  last return –  evaluating: 40 steps", True),
        (
            "04:14:00  1,000 of 1,000 steps  7 steps/s  0:00:00 left  last return 16.8  evaluation 5 ± 3  best 5 at 9",
            False,
        ),
        ("[1/2] job 0  note: threads=auto uses 2 threads, and one would be faster now", True),
    ],
)
def test_lines_of_slow_machines(line, skipped):
    assert bool(tutorial.OF_SLOW_MACHINES.search(line)) == skipped


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written():
    script = tutorial.ROOT / "scripts" / "tutorial.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
