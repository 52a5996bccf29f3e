"""The pages that are made from the code, and the commands that a page shows."""

import itertools
import json
import shutil
import subprocess
import sys

import keys
import made_policies
import numpy as np
import pytest
import tutorial
from commands import SMALL

from dpg_cli import load_policy
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
        assert command in ("tensorboard", "cmp", "dpg-report")


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


USING = list(tutorial.blocks((tutorial.ROOT / "docs" / "using_a_policy.md").read_text(encoding="utf-8")))


def of_language(language):
    return [block.text for block in USING if block.language == language]


@pytest.fixture
def used(trained, export, tmp_path):
    """A run and its exported files, as the page on using a policy has them."""
    pytest.importorskip("onnxruntime")
    run = trained("env=HalfCheetah-v4", *SMALL)
    for arguments in ([], ["format=pt2"], ["format=c", "out=cheetah.h"]):
        assert export(str(run), *arguments)[0] == 0
    return run


class Robot:
    """Runs for two steps."""

    def __init__(self):
        self.actions = []

    def running(self):
        return len(self.actions) < 2

    def observe(self):
        return np.zeros(17)

    def apply(self, action):
        self.actions.append(action)


def test_the_python_of_the_page_on_using_a_policy(used, capfd):
    obs, robot = np.linspace(-1, 1, 17), Robot()
    expected = load_policy(used)(obs)
    acted = 0
    for text in of_language("python"):
        names = {"obs": obs, "robot": robot}
        exec(compile(text.replace("RUN_DIR", str(used)), "using_a_policy.md", "exec"), names)
        if "act" in names:
            names["action"] = names["act"](obs[None])[0]
        if "action" in names:
            np.testing.assert_allclose(names["action"], expected, atol=1e-5)
            acted += 1
    assert (acted, len(robot.actions)) == (4, 2)
    assert json.loads(capfd.readouterr().out) == "HalfCheetah-v4"


@pytest.mark.parametrize("network", made_policies.NETWORKS)
def test_the_numpy_of_the_page_on_using_a_policy_knows_every_layer(tmp_path, network):
    (text,) = [text for text in of_language("python") if "def act(" in text]
    path = tmp_path / "checkpoints" / "best" / "policy.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(made_policies.policy_file(network, step=0))
    names = {}
    exec(compile(text.replace("RUN_DIR", str(tmp_path)), "using_a_policy.md", "exec"), names)
    obs = np.random.default_rng(0).normal(0, 3, (20, made_policies.OBS_DIM))
    right = made_policies.in_units(made_policies.expected(network, obs))
    np.testing.assert_allclose(names["act"](obs), right, rtol=0, atol=1e-5)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_c_of_the_page_on_using_a_policy(used, tmp_path):
    (text,) = of_language("c")
    (tmp_path / "control.c").write_text(text)
    command = ["gcc", "-std=c99", "-O2", "-ffreestanding", "-Wall", "-Wextra", "-Werror", "-c", "control.c"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_the_container_has_what_the_package_is_built_from():
    (text,) = of_language("dockerfile")
    copied = {name for line in text.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "configs", "dpg_cli"}
    assert all((tutorial.ROOT / name).exists() for name in copied)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written():
    script = tutorial.ROOT / "scripts" / "tutorial.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
