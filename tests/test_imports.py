"""What may import what: the core knows nothing of Hydra or Gymnasium, and imports point one way."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from commands import SMALL, TOY

import dpg_cli

PACKAGE = Path(dpg_cli.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
CORE = ("dpg_cli.algorithms", "dpg_cli.networks", "dpg_cli.noise", "dpg_cli.replay")
HEAVY = (
    "torch",
    "hydra",
    "omegaconf",
    "tensorboard",
    "pydantic",
    "mujoco",
    "gymnasium.envs.mujoco",
    "gymnasium.envs.classic_control",
)
FORBIDDEN = ("hydra", "omegaconf", "gymnasium", "tensorboard", "torch.utils.tensorboard")


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Every module that a file imports, wherever in it that stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name):
    """The part of the package that a module belongs to: `dpg_cli.cli.train` to `cli`."""
    return name.split(".")[1]


@cache
def parts():
    """The parts of the package, and which others each imports."""
    known = {part(module_name(path)) for path in SOURCES if path != PACKAGE / "__init__.py"}
    graph = {name: set() for name in known}
    for path in SOURCES:
        own = part(module_name(path) + ".__init__")
        for name in imported(path):
            if name.startswith("dpg_cli.") and own in known and part(name) in known - {own}:
                graph[own].add(part(name))
    return graph


def modules():
    """The modules of the package, and which others each imports."""
    paths = {module_name(path): path for path in SOURCES}

    def module(name):
        return name if name in paths else module(name.rpartition(".")[0])

    return {
        own: {module(name) for name in imported(path) if name.startswith("dpg_cli.")} - {own}
        for own, path in paths.items()
    }


def importers(name):
    return {other for other, used in parts().items() if name in used}


def test_the_core_pulls_in_no_config_no_environment_and_no_logger():
    program = (
        f"import importlib, sys\n"
        f"for name in {CORE}: importlib.import_module(name)\n"
        f"print(*[name for name in {FORBIDDEN} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_processes_that_step_environments_do_not_import_torch():
    program = "import sys, dpg_cli.environments.processes, dpg_cli.environments.worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_the_process_of_a_job_watches_its_sweep_before_it_imports_torch():
    program = "import sys, dpg_cli.cli.sweep_job, dpg_cli.cli.env_sizes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_policy_needs_no_torch_no_config_no_logger_and_no_environment(trained):
    run = trained(TOY, *SMALL)
    program = (
        f"import sys, dpg_cli\n"
        f"assert 'numpy' not in sys.modules\n"
        f"policy = dpg_cli.load_policy({str(run)!r})\n"
        f"policy([0.0, 1.0])\n"
        f"print(*[name for name in sys.modules if name.startswith({(*HEAVY, 'toy_envs')})])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_and_the_config_know_hydra(path):
    known = {name.split(".")[0] for name in imported(path)} & {"hydra", "omegaconf"}
    allowed = {PACKAGE / "config", PACKAGE / "cli"} & set(path.parents)
    assert allowed or not known


@pytest.mark.parametrize("name", [*CORE, "dpg_cli.seeding", "dpg_cli.errors"])
def test_the_sources_of_the_core_name_none_of_them(name):
    for path in SOURCES:
        if (module_name(path) + ".").startswith(name + "."):
            assert not {i for i in imported(path) if i.startswith(FORBIDDEN)}, path


def test_imports_make_no_circle():
    for graph in (parts(), modules()):
        list(TopologicalSorter(graph).static_order())


def test_imports_point_one_way():
    """Such as `cli -> trainer -> {learner, environments}`, `captured_learner -> learner`, `algorithms -> networks`."""
    learners = {"learner", "captured_learner", "compiled_learner", "separate_learner"}
    below_the_trainer = learners | {"environments", "replay", "dataset", "storage", "metrics", "capture"}
    assert importers("cli") == set()
    assert importers("config") == {"cli"}
    loops = {"trainer", "offline", "bookkeeping"}
    assert importers("trainer") == importers("offline") == {"cli"}
    assert importers("bookkeeping") == {"cli", "trainer", "offline"}
    for name in below_the_trainer:
        users = {"config", "policy", "export", "report", "sweeps"} if name == "storage" else set()
        assert importers(name) <= {"cli"} | loops | below_the_trainer | users
    assert importers("policy") <= {"cli", "export"}
    assert importers("export") <= {"cli"}
    assert importers("report") <= {"cli"}
    assert importers("sweeps") <= {"cli"}
    graph = parts()
    assert {"learner", "environments", "storage", "metrics"} <= graph["trainer"] & graph["bookkeeping"]
    assert {"replay", "metrics"} <= graph["learner"]
    assert {"learner", "replay", "capture"} <= graph["captured_learner"]
    assert importers("captured_learner") == importers("compiled_learner") == {"cli"}
    assert importers("priorities") == {"cli", "config", "replay"}
    assert "networks" in graph["algorithms"]
    upper = below_the_trainer | {"cli", "config", "trainer", "noise"}
    assert not graph["algorithms"] & upper
    assert not graph["networks"] & (upper | {"algorithms"})
    assert not graph["noise"] & (upper | {"algorithms", "networks"})


def test_an_algorithm_knows_no_other():
    for path in (PACKAGE / "algorithms").glob("*.py"):
        if path.stem not in ("__init__", "base"):
            used = {name.split(".")[2] for name in imported(path) if name.startswith("dpg_cli.algorithms.")}
            assert used == {"base"}, path
