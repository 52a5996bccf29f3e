"""The config tree: every YAML composes and holds what the code wants; every mistake is one clear line."""

import itertools
import os

import pytest
import yaml
from omegaconf import OmegaConf

from dpg_cli import config
from dpg_cli.cli.learners import choose_threads
from dpg_cli.config import choices, compose, config_dir, validate
from dpg_cli.errors import UserError


def checked(*overrides):
    return validate(compose(list(overrides)))


@pytest.mark.parametrize(("algo", "noise"), [*zip(choices("algo"), itertools.cycle(choices("noise")), strict=False)])
def test_every_algorithm_and_every_noise_composes(algo, noise):
    result = checked(f"algo={algo}", f"noise={noise}")
    assert result.algo["name"] == algo.partition("/")[0]
    assert result.noise["name"] == noise


@pytest.mark.parametrize("env", choices("env"))
def test_every_environment_composes_under_its_own_id(env):
    assert checked(f"env={env}").env.id == env


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes(experiment):
    checked(f"experiment={experiment}")


def test_defaults():
    c = checked()
    assert (c.algo["name"], c.env.id, c.noise["name"], c.seed, c.total_steps) == (
        "td3",
        "HalfCheetah-v4",
        "gaussian",
        0,
        10**6,
    )
    assert c.random_steps == c.learning_starts == 25_000
    assert (c.eval.every, c.eval.episodes, c.checkpoint.every, c.checkpoint.keep, c.log.every) == (
        5000,
        10,
        50000,
        2,
        1000,
    )


@pytest.mark.parametrize(
    ("env", "random_steps", "paper_random_steps", "total_steps"),
    [
        ("HalfCheetah-v5", 25_000, 10_000, 10**6),
        ("Ant-v4", 25_000, 10_000, 10**6),
        ("Hopper-v4", 25_000, 1_000, 10**6),
        ("InvertedPendulum-v4", 1_000, 1_000, 30_000),
        ("InvertedDoublePendulum-v5", 1_000, 1_000, 30_000),
        ("Reacher-v4", 1_000, 1_000, 200_000),
        ("Pendulum-v1", 1_000, 1_000, 20_000),
        ("MountainCarContinuous-v0", 10_000, 1_000, 10**6),
    ],
)
def test_environments_bring_their_own_steps(env, random_steps, paper_random_steps, total_steps):
    c = checked(f"env={env}")
    assert (c.random_steps, c.env.paper_random_steps, c.total_steps) == (random_steps, paper_random_steps, total_steps)


def test_td3_paper():
    c = checked("experiment=td3_paper", "env=HalfCheetah-v4")
    assert (c.algo["hidden_sizes"], c.algo["batch_size"]) == ([400, 300], 100)
    assert c.algo["actor_lr"] == c.algo["critic_lr"] == 1e-3
    assert (c.random_steps, c.learning_starts) == (10_000, 100)


def test_our_ddpg():
    c = checked("experiment=our_ddpg")
    assert (c.algo["name"], c.noise["name"], c.noise["scale"]) == ("ddpg", "gaussian", 0.1)
    assert (c.algo["hidden_sizes"], c.algo["batch_size"], c.algo["actor_lr"]) == ([400, 300], 100, 1e-3)


def test_ddpg_original():
    c = checked("experiment=ddpg_original")
    assert (c.algo["critic_action_layer"], c.algo["critic_weight_decay"], c.algo["tau"]) == (2, 1e-2, 1e-3)
    assert (c.algo["batch_size"], c.algo["normalize_obs"], c.noise["name"]) == (64, True, "ou")
    assert (c.random_steps, c.learning_starts) == (0, 64)


def test_ddpg_notes():
    c = checked("experiment=ddpg_notes")
    assert (c.buffer_size, c.random_steps, c.learning_starts, c.truncation_bootstraps) == (100_000, 0, 64, False)


def test_overestimation_is_a_sweep_over_one_critic_and_two():
    overrides = ["experiment=overestimation"]
    composed = compose(overrides)
    assert composed.hydra.mode.name == "MULTIRUN"
    jobs = list(config.combinations(overrides, composed))
    assert [checked(*job).algo["num_critics"] for job in jobs] == [1, 2]
    for job in jobs:
        algo = checked(*job).algo
        assert (algo["name"], algo["policy_noise"], algo["policy_delay"]) == ("td3", 0.0, 1)


def test_td3_ablation_takes_one_part_away_at_a_time():
    overrides = ["experiment=td3_ablation"]
    jobs = list(config.combinations(overrides, compose(overrides)))
    arms = [checked(*job) for job in jobs]
    parts = [
        tuple(arm.algo.get(key) for key in ("name", "num_critics", "policy_noise", "policy_delay")) for arm in arms
    ]
    assert parts == [
        ("td3", 2, 0.2, 2),
        ("td3", 1, 0.2, 2),
        ("td3", 2, 0.0, 2),
        ("td3", 2, 0.2, 1),
        ("ddpg", None, None, None),
    ]
    same = [(a.env.id, a.num_seeds, a.total_steps, a.algo["hidden_sizes"], a.algo["actor_lr"]) for a in arms]
    assert set(map(str, same)) == {str(("InvertedDoublePendulum-v4", 5, 30_000, [400, 300], 1e-3))}


def test_td3_vs_ddpg_is_the_paper_beside_its_own_ddpg():
    overrides = ["experiment=td3_vs_ddpg"]
    jobs = list(config.combinations(overrides, compose(overrides)))
    td3, ddpg = (checked(*job).model_dump() for job in jobs)
    assert td3 | {"num_seeds": 1} == checked("experiment=td3_paper").model_dump()
    assert ddpg | {"num_seeds": 1} == checked("experiment=our_ddpg").model_dump()


def test_command_line_wins_over_experiment():
    c = checked("experiment=td3_paper", "algo.batch_size=7", "noise=ou", "learning_starts=3")
    assert (c.algo["batch_size"], c.noise["name"], c.learning_starts) == (7, "ou", 3)


@pytest.mark.parametrize("text", ["1e6", "1_000_000", "1000000", "1.0e6"])
def test_counts_in_every_notation(text):
    c = checked(f"total_steps={text}", f"algo.batch_size={text}", f"eval.every={text}")
    assert c.total_steps == c.algo["batch_size"] == c.eval.every == 10**6
    assert isinstance(c.total_steps, int)


@pytest.mark.parametrize(
    "env_id", ["Pendulum-v1", "NoYaml-v3", "dm_control/cheetah-run-v0", "my_pkg:MyEnv-v0", "a.b:n/E-v1"]
)
def test_any_id_is_an_environment(env_id):
    assert checked(f"env={env_id}").env.id == env_id


def test_what_an_environment_is_given_stays_as_it_is():
    assert checked("++env.kwargs.mass=1.0", "++env.kwargs.deep.list=[1,2.0]").env.kwargs == {
        "mass": 1.0,
        "deep": {"list": [1, 2.0]},
    }
    assert isinstance(checked("++env.kwargs.mass=1.0").env.kwargs["mass"], float)


def test_run_folder_has_no_slash_or_colon_of_the_id():
    folder = compose(["env=my_pkg:ns/MyEnv-v0", "algo=ddpg"]).hydra.run.dir
    assert folder.startswith("outputs/my_pkg_ns_MyEnv-v0/ddpg/")


def test_resolved_config_survives_the_file():
    c = checked("experiment=ddpg_original", "++env.kwargs.x=1")
    assert config.load(config.dump(c)) == c


def test_a_config_from_before_a_key_was_there_has_its_old_meaning():
    stored = yaml.safe_load(config.dump(checked("share_next_obs=true", "env_threads=2", "env_processes=2")))
    newer = ("share_next_obs", "env_threads", "env_processes")
    older = {key: value for key, value in stored.items() if key not in newer}
    loaded = config.load(yaml.safe_dump(older))
    assert (loaded.share_next_obs, loaded.env_threads, loaded.env_processes) == (False, "auto", "auto")


def test_a_stored_config_is_data():
    text = config.dump(checked()).replace("HalfCheetah-v4", "${oc.env:HOME}")
    assert config.load(text).env.id == "${oc.env:HOME}"
    for bad in ("!!python/object/apply:os.system ['true']", "[1, 2]", "seed: [", "seed: 0"):
        with pytest.raises(UserError):
            config.load(bad)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo=td33", "algo=td33: must be one of "),
        ("algo=td33", "; did you mean td3?"),
        ("algo=TD3", "; did you mean td3?"),
        ("algo=td3/without_dely", "; did you mean td3/without_delay?"),
        ("noise=oui", "noise=oui: must be one of "),
        ("noise=oui", "; did you mean ou?"),
        ("experiment=td3paper", "did you mean td3_paper?"),
        ("total_step=5", "total_step: unknown key; did you mean total_steps?"),
        ("algo.tua=1", "algo.tua: unknown key; did you mean algo.tau?"),
        ("tau=1", "tau: unknown key; did you mean algo.tau?"),
        ("+typo=1", "typo: unknown key"),
        ("+algo.tua=1", "algo.tua: unknown key; did you mean algo.tau?"),
        ("+eval.evry=1", "eval.evry: unknown key; did you mean eval.every?"),
        ("algo.tau=2", "algo.tau=2: should be less than or equal to 1"),
        ("algo.tau=0", "algo.tau=0: should be greater than 0"),
        ("total_steps=-1", "total_steps=-1: should be greater than or equal to 1"),
        ("total_steps=1.5", "total_steps=1.5: should be a valid integer"),
        ("total_steps=abc", "total_steps=abc: should be a valid integer"),
        ("total_steps=inf", "total_steps=inf: should be a valid integer"),
        ("algo.policy_delay=0", "algo.policy_delay=0: should be greater than or equal to 1"),
        ("algo.discount=nan", "algo.discount=nan: should be a finite number"),
        ("seed=-5", "seed=-5: should be greater than or equal to 0"),
        ("seed=true", "seed=True: should be a valid integer"),
        ("algo.n_steps=null", "algo.n_steps=null: should be a valid integer"),
        ("device=gpu", "device=gpu: should be auto, cpu, cuda or cuda:N"),
        ("threads=many", "threads=many: should be 'auto' or a valid integer"),
        ("env_threads=many", "env_threads=many: should be 'auto' or a valid integer"),
        ("env_threads=0", "env_threads=0: should be 'auto' or greater than or equal to 1"),
        ("env_processes=some", "env_processes=some: should be 'auto' or a valid integer"),
        ("env_processes=1.5", "env_processes=1.5: should be 'auto' or a valid integer"),
        ("precision=float16", "precision=float16: should be 'float32', 'bf16' or 'float64'"),
        ("updates_per_step=0", "updates_per_step=0: should be greater than 0"),
        ("algo.hidden_sizes=[64,0]", "algo.hidden_sizes.1=0: should be greater than or equal to 1"),
        ("noise.scale=-1", "noise.scale=-1: should be greater than or equal to 0"),
        ("algo.name=sac", "algo.name=sac: set by algo=; use algo=sac"),
        ("replay.name=lap", "replay.name=lap: set by replay=; use replay=lap"),
        ("noise.name=pink", "noise.name=pink: set by noise=; use noise=pink"),
        ("buffer_size=10", "buffer_size=10: must be at least algo.batch_size=256"),
        ("~seed", "seed: missing"),
        ("algo=ddpg,td3", "add -m to sweep"),
        ("total_steps", "total_steps: not of the form key=value"),
        ("total_steps=${nothing}", "total_steps: Interpolation key 'nothing' not found"),
    ],
)
def test_mistakes_are_one_clear_line(override, message):
    with pytest.raises(UserError) as caught:
        checked(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sweeps_expand_as_hydra_does():
    overrides = ["algo=ddpg,td3", "seed=range(2)", "env=Pendulum-v1"]
    jobs = list(config.combinations(overrides, compose(config.without_sweeps(overrides))))
    assert jobs == [
        ["algo=ddpg", "seed=0", "env=Pendulum-v1"],
        ["algo=ddpg", "seed=1", "env=Pendulum-v1"],
        ["algo=td3", "seed=0", "env=Pendulum-v1"],
        ["algo=td3", "seed=1", "env=Pendulum-v1"],
    ]


def test_every_file_says_what_it_is():
    for path in config_dir().glob("*/*.yaml"):  # those in folders of their own are variations of one
        names = OmegaConf.load(path)
        assert names.get("name", path.stem) == path.stem, path
        assert names.get("id", path.stem) == path.stem, path


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ([], 4),
        (["num_seeds=1", "algo.hidden_sizes=[64,64]", "algo.batch_size=64"], 1),
        (["num_seeds=8", "algo.hidden_sizes=[64,64]", "algo.batch_size=64"], 4),
        (["algo.hidden_sizes=[32]", "algo.batch_size=64"], 1),
        (["algo.hidden_sizes=[1024]", "algo.batch_size=64"], 4),
        (["algo.hidden_sizes=[]"], 1),
        (["algo.hidden_sizes=[64,64]", "algo.batch_size=64", "threads=3"], 3),
        (["threads=1"], 1),
    ],
)
def test_small_networks_get_one_thread(monkeypatch, given, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert choose_threads(checked(*given), obs_dim=17).number == threads


@pytest.mark.parametrize(
    "jobs",
    [
        [["algo=td3", "seed=0"], ["algo=td3", "seed=1"], ["algo=ddpg", "seed=0"], ["algo=td3", "seed=2"]],
        [["env.random_steps=7", f"seed={seed}"] for seed in range(3)],  # from which random_steps is interpolated
        [[f"algo.batch_size={size}", "learning_starts=${algo.batch_size}"] for size in (8, 9, 10)],
        [[f"total_steps={steps}", "eval={every: 5, episodes: 2}"] for steps in ("1e5", "2_000", "300")],
        [[f"experiment={name}", f"seed={seed}"] for name in ("td3_paper", "our_ddpg") for seed in range(3)],
        [[f"++env.kwargs.wind={wind}", "env=Pendulum-v1"] for wind in (1, 2, 3)],
        [[f"algo.hidden_sizes=[{size}]", "noise=ou"] for size in (8, 9, 10)],
    ],
)
def test_the_jobs_of_a_sweep_are_what_hydra_composes(jobs, tmp_path):
    found = list(config.checked_jobs(jobs, tmp_path))
    assert [own for own, _ in found] == [config.validate(config.compose(job), tmp_path) for job in jobs]
    assert [folder for _, folder in found] == [str(number) for number in range(len(jobs))]


def test_a_mistake_in_a_later_job_of_a_sweep_is_explained(tmp_path):
    jobs = [["seed=0"], ["seed=1"], ["seed=2"], ["seed=-1"]]
    checked = config.checked_jobs(jobs, tmp_path)
    assert [next(checked)[0].seed for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="seed=-1: should be greater than or equal to 0"):
        next(checked)
