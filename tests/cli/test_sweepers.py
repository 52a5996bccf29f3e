"""Sweepers and launchers from packages of their own: what they are given, and what is said if they are missing."""

import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import yaml
from commands import SMALL, TOY
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from dpg_cli import config as configs
from dpg_cli.cli.handover import Loader
from dpg_cli.cli.returned import NoScoreError, checked_score, fill

SEARCH = ["-m", "hydra/sweeper=optuna", "++hydra.sweeper.sampler=null"]  # whose class the real plugin would import
OPTUNA = OmegaConf.create({"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"})
BASIC = OmegaConf.create({"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"})
FAILING = ["env.kwargs.bad=raise", "total_steps=300", "eval.every=100"]


class Search(Sweeper):
    """In the place of hydra-optuna-sweeper, which handles the exception of a job as this class does."""

    def __init__(self, **options):
        type(self).options, type(self).found = options, []

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        for trial, bad_step in enumerate(("null", "250")):
            (job,) = self.launcher.launch([[*arguments, f"++env.kwargs.bad_step={bad_step}"]], initial_job_idx=trial)
            try:
                self.found.append(float(job.return_value))
            except Exception as error:
                self.found.append(error)
                if self.options["max_failure_rate"] < 1:
                    job.return_value  # noqa: B018, it raises the exception


@pytest.fixture
def search(monkeypatch):
    """`hydra/sweeper=optuna` is `Search`."""
    for name in ("hydra_plugins.hydra_optuna_sweeper", "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.OptunaSweeper = Search
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(Plugins.instance().class_name_to_class, OPTUNA._target_, Search)


def test_a_search_maximises_unless_told(search):
    assert configs.select(configs.compose(["hydra/sweeper=optuna"]), "hydra.sweeper.direction") == "maximize"
    composed = configs.compose(["hydra/sweeper=optuna", "hydra.sweeper.direction=minimize"])
    assert configs.select(composed, "hydra.sweeper.direction") == "minimize"


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_search_gets_scores_and_the_reasons_of_failures(train, search, tmp_path, launcher):
    arguments = [*SEARCH, f"hydra/launcher={launcher}", TOY, *SMALL, *FAILING, "device=cpu"]
    code, _, err = train(*arguments, "hydra.sweep.dir=sweep")
    assert code == 1, err
    assert Search.options["direction"] == "maximize"
    score, error = Search.found
    lines = (tmp_path / "sweep/0/evaluations.jsonl").read_text().splitlines()
    means = [sum(yaml.safe_load(line)["returns"]) / len(yaml.safe_load(line)["returns"]) for line in lines[-10:]]
    assert score == pytest.approx(sum(means) / len(means))
    assert isinstance(error, NoScoreError)
    assert str(error) == "the environment Reach raised RuntimeError: the simulator broke"
    assert err.splitlines()[-1] == f"dpg-train: job 1 failed: {error}"


def test_a_search_that_accepts_no_failure_says_why_it_ended(train, search):
    arguments = [*SEARCH, "hydra.sweeper.max_failure_rate=0", TOY, *SMALL, *FAILING]
    code, out, err = train(*arguments, "hydra.sweep.dir=sweep")
    assert code == 1, err
    assert "job  settings that differ" in out
    assert err.endswith("dpg-train: the search ended: more jobs failed than hydra.sweeper.max_failure_rate\n")


def test_resuming_a_search_says_that_its_jobs_can_be_resumed(train, search, tmp_path):
    train(*SEARCH, TOY, *SMALL, *FAILING, "hydra.sweep.dir=sweep")
    code, out, err = train("resume=sweep")
    where = tmp_path / "sweep"
    assert (code, out) == (2, "")
    assert err == (
        f"dpg-train: resume={where}: has no configs.jsonl; a search has none, because it decides on its jobs as it "
        f"goes; resume={where}/NUMBER resumes one job\n"
    )


def test_only_optuna_is_told_of_a_job_without_a_score_by_an_exception():
    assert checked_score(1.5, OPTUNA, None) == 1.5
    assert math.isnan(checked_score(math.nan, BASIC, "gone"))
    with pytest.raises(NoScoreError, match=r"^gone$"):
        checked_score(math.nan, OPTUNA, "gone")
    done = JobReturn()
    fill(done, math.nan, OPTUNA, None)
    assert done.status is JobStatus.FAILED
    with pytest.raises(NoScoreError, match=r"^no evaluation and no finished training episode$"):
        done.return_value  # noqa: B018
    fill(done, 2.0, OPTUNA, None)
    assert (done.status, done.return_value) == (JobStatus.COMPLETED, 2.0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("hydra/launcher=ray", "needs hydra-ray-launcher; pip install -e '.[ray]' in the clone of dpg-cli"),
        ("hydra/sweeper=optuna", "needs hydra-optuna-sweeper; pip install hydra-optuna-sweeper"),
    ],
)
def test_a_missing_plugin_costs_one_line_and_no_folder(train, tmp_path, monkeypatch, choice, message):
    for name in ("hydra_plugins.hydra_ray_launcher", "hydra_plugins.hydra_optuna_sweeper"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    code, out, err = train("-m", choice, TOY, *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert (code, out, err) == (2, "", f"dpg-train: {choice}: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_rays_keys_need_no_plus():
    keys = ["init.address=auto", "init.num_cpus=2", "remote.num_cpus=2", "remote.num_gpus=0.5", "remote.max_retries=-1"]
    composed = configs.compose(["hydra/launcher=ray", *(f"hydra.launcher.ray.{key}" for key in keys)])
    assert configs.select(composed, "hydra.launcher.ray.remote.num_gpus") == 0.5
    assert configs.select(composed, "hydra.launcher._target_").endswith(".RayLauncher")


def test_processes_of_other_launchers_know_our_configs(monkeypatch):
    stored = ConfigStore.instance().repo.setdefault("hydra", {}).setdefault("sweeper", {})
    seen = []
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda *_: seen.append("optuna.yaml" in stored))
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node={"direction": "minimize"})
    Loader.load_sweep_config(object.__new__(Loader), None, [])  # as after Hydra has loaded its plugins again
    assert seen == [False]
