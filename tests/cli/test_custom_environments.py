"""What a user with an environment of their own meets in the first hour."""

import json
import os
import re
import signal
import sys

import custom_envs
import numpy as np
import pytest
from commands import SMALL, lines
from oracle import differences
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpg_cli.cli import build
from dpg_cli.environments import evaluation

SHORT = [*SMALL, "total_steps=300", "random_steps=100", "eval.every=100", "checkpoint.every=100", "eval.episodes=1"]
SHORT += ["hydra.run.dir=run"]


def env(name):
    return f"env=custom_envs:{name}-v0"


@pytest.fixture(autouse=True)
def _as_imported(monkeypatch):
    """What environments keep in their classes is that of a new process."""
    for cls in vars(custom_envs).values():
        for name in ("episodes", "difficulty", "alive", "created", "open_now"):
            if isinstance(cls, type) and name in vars(cls):
                monkeypatch.setattr(cls, name, vars(cls)[name])
    yield
    for holder in (custom_envs, custom_envs.Traces):
        vars(holder).get("new") and delattr(holder, "new")
    custom_envs.server = None
    custom_envs.started.clear()


def scores(folder):
    return [record["returns"] for record in lines(folder / "evaluations.jsonl")]


# --- state ---


@pytest.mark.parametrize("name", ["Plain", "OwnCurriculum", "Phases"])
@pytest.mark.parametrize("more", [[], ["num_seeds=2", "num_envs=2"], ["env_processes=2", "num_envs=2"]])
def test_a_stopped_and_resumed_run_is_the_same(train, signalled, trained, tmp_path, name, more):
    assert signalled("step", 70, [signal.SIGTERM], env(name), *SHORT, *more)[0] == 143
    code, _, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    assert differences(tmp_path / "run", trained(env(name), *SHORT, *more)) == []


def test_an_evaluation_does_not_depend_on_those_before(train, tmp_path):
    """Every reward of its first episode counts 1.5 times."""
    for every in (50, 100):
        assert train(env("OwnCurriculum"), *SHORT, f"eval.every={every}", f"hydra.run.dir={every}")[0] == 0
    assert scores(tmp_path / "50")[::2] == scores(tmp_path / "100")


def test_environments_that_cannot_be_put_back_are_created_for_every_evaluation(train, tmp_path):
    code, out, _ = train(env("UncopyableCurriculum"), *SHORT)
    assert code == 0
    assert "cannot be saved in the middle of an episode (UncopyableCurriculum.anything is a range_iterator)" in out
    assert train(env("OwnCurriculum"), *SHORT, "hydra.run.dir=copyable")[0] == 0
    assert scores(tmp_path / "run") == scores(tmp_path / "copyable")


def test_environments_that_cannot_be_put_back_and_are_slow_to_create_are_named(train, monkeypatch):
    monkeypatch.setattr("dpg_cli.environments.probe.SLOW", 0.01)
    code, out, _ = train(env("UncopyableCurriculum"), *SHORT, "env.kwargs.seconds=0.02")
    assert code == 0
    assert "creating it takes 0.0 s, so all evaluations use the same environments" in out


def test_a_run_survives_an_environment_that_becomes_impossible_to_copy(train, tmp_path):
    code, _, err = train(env("Late"), *SHORT, "eval.every=50", "eval.episodes=3", "total_steps=450")
    assert (code, err) == (0, "")
    said = "the state of an environment cannot be saved at this checkpoint: Late.phase is a function"
    assert said in (tmp_path / "run/train.log").read_text()
    code, _, err = train("resume=run", "trust=true", "total_steps=500")
    assert (code, err) == (0, "")
    assert "a new episode starts: the state of the last one" in (tmp_path / "run/train.log").read_text()


def test_state_of_a_class_is_named_and_the_probe_leaves_no_trace(train, monkeypatch):
    begun = []
    monkeypatch.setattr("dpg_cli.cli.build.LocalEnvs.__init__", note_first(begun))
    code, out, _ = train(env("ClassCurriculum"), *SHORT)
    assert code == 0
    assert begun == [0]
    assert "its steps or resets change the class attribute ClassCurriculum.difficulty, the class attribute " in out
    assert "A resumed run starts with their initial values" in out


def note_first(begun):
    from dpg_cli.environments.group import LocalEnvs

    original = LocalEnvs.__init__

    def init(self, *args, **named):
        if not begun:
            begun.append(custom_envs.ClassCurriculum.episodes)
        original(self, *args, **named)

    return init


def test_an_ignored_seed_is_named_by_both_commands(train, evaluate):
    code, out, _ = train(env("IgnoresSeed"), *SHORT)
    assert code == 0
    assert "reset(seed=...) does not determine the episode" in out
    for episodes in (1, 2):
        code, out, _ = evaluate("run", "trust=true", f"episodes={episodes}")
        assert code == 0
        assert out.startswith("note: custom_envs:IgnoresSeed-v0: reset(seed=...) does not determine the episode")
    assert train(env("Plain"), *SHORT, "hydra.run.dir=plain")[0] == 0
    assert "note" not in evaluate("plain", "trust=true")[1]
    assert train(env("Noisy"), *SHORT, "hydra.run.dir=noisy")[1].count("Noisy-v0: reset(seed=") == 1
    assert evaluate("noisy", "trust=true")[1].startswith("note: custom_envs:Noisy-v0: reset(seed=")


@pytest.mark.parametrize("kind", ["same", "cycle", "generator", "restart", "view", "constant"])
def test_attributes_that_share_an_object_still_do_so(train, signalled, trained, tmp_path, monkeypatch, kind):
    given = [env("Sharing"), *SHORT, f"env.kwargs.kind={kind}"]
    assert signalled("step", 130, [signal.SIGTERM], *given)[0] == 143
    code, _, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    assert differences(tmp_path / "run", trained(*given)) == []
    assert "cannot be saved" not in (tmp_path / "run/train.log").read_text()
    assert list(custom_envs.Sharing.HOME) == [1.0]
    monkeypatch.setattr("dpg_cli.environments.pool.Instance.put_back", lambda _: False)  # all are created again
    assert train(*given, "hydra.run.dir=again")[0] == 0
    assert scores(tmp_path / "run") == scores(tmp_path / "again")


ODD = [
    "defaultdict",
    "counter",
    "namedtuple",
    "ordered",
    "slots",
    "philox",
    "longdouble",
    "foreign",
    "inner",
    "default",
    "closure",
    "spawned",
    "memory",
]


@pytest.mark.parametrize("kind", ODD)
def test_an_attribute_that_cannot_be_copied_harms_nothing(train, trained, tmp_path, kind):
    """The numbers are those of an environment that does not have it."""
    code, out, err = train(env("Holds"), *SHORT, f"env.kwargs.kind={kind}")
    assert (code, err) == (0, "")
    assert re.search(r"its state cannot be saved in the middle of an episode \(Holds.held is an? ", out)
    assert scores(tmp_path / "run") == scores(trained(env("Holds"), *SHORT, "env.kwargs.kind=nothing"))


@pytest.mark.parametrize(
    ("name", "reason"), [("Slotted", "Slotted has __slots__"), ("NewSpace", "NewSpace.goal_space is a space that was")]
)
def test_what_attributes_do_not_show_cannot_be_copied(train, name, reason):
    assert f"in the middle of an episode ({reason}" in train(env(name), *SHORT)[1]


@pytest.mark.parametrize("what", ["class", "module", "server"])
def test_the_probe_leaves_no_trace_outside(train, monkeypatch, what):
    left = []

    def new_learner(*args, **named):
        left.append(getattr(custom_envs.Traces, "new", None) or vars(custom_envs).get("new"))
        return original(*args, **named)

    original = build.new_learner
    monkeypatch.setattr(build, "new_learner", new_learner)
    code, out, err = train(env("Traces"), *SHORT, f"env.kwargs.what={what}")
    assert (code, err) == (0, "")
    assert left == [None]
    assert "its steps or resets change the " in out


def test_a_run_with_global_generators_is_resumed_exactly(train, signalled, trained, tmp_path):
    given = [env("Global"), *SHORT]
    assert signalled("step", 130, [signal.SIGTERM], *given)[0] == 143
    assert train("resume=run", "trust=true")[0] == 0
    assert differences(tmp_path / "run", trained(*given)) == []


# --- simulators ---


def test_one_instance_is_enough_without_evaluations(train, evaluate, tmp_path):
    code, _, err = train(env("Single"), *SHORT)
    assert code == 2
    assert "num_envs=1 eval.episodes=0 trains with a single one, without evaluations" in err
    assert not (tmp_path / "run").exists()
    assert custom_envs.Single.alive == 0
    code, out, err = train(env("Single"), *SHORT, "eval.episodes=0")
    assert (code, err) == (0, "")
    assert "seed 0: no evaluations; last training episodes -" in out
    assert "  last training episodes -" in out
    assert "evaluation -" not in out
    assert custom_envs.Single.alive == 0
    assert lines(tmp_path / "run/evaluations.jsonl") == []
    code, out, err = evaluate("run", "trust=true", "episodes=3")
    assert (code, err) == (0, "")
    assert "3 episodes: return -" in out


def test_scores_without_evaluations_are_those_of_training_episodes(train, tmp_path):
    """Episodes have 50 steps. Those of the random steps do not count."""
    assert train(env("Plain"), *SHORT, "eval.episodes=0", "log.every=50", "total_steps=1000")[0] == 0
    records = lines(tmp_path / "run/metrics.jsonl")
    episodes = {r["step"]: r["train/episode_return"] for r in records if "train/episode_return" in r}
    assert sorted(episodes) == [50 * i for i in range(1, 21)]
    expected = {
        step: np.mean([value for at, value in episodes.items() if 100 < at <= step][-10:])
        for step in range(200, 1001, 100)
    }
    assert {r["step"]: r["train/last_10_returns"] for r in records if "train/last_10_returns" in r} == pytest.approx(
        expected
    )
    best = max(expected, key=expected.get)
    assert (tmp_path / "run/checkpoints/best").resolve().name == f"best_{best:09}"
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    assert "train/last_10_returns" in tags
    assert not [tag for tag in tags if tag.startswith("eval/")]


@pytest.mark.parametrize("more", [[], ["num_seeds=2", "env_processes=2"]])
def test_a_run_without_evaluations_is_resumed_exactly(train, signalled, trained, tmp_path, more):
    given = [env("Plain"), *SHORT, "eval.episodes=0", *more]
    assert signalled("step", 210, [signal.SIGTERM], *given)[0] == 143
    code, _, err = train("resume=run", "trust=true")
    assert (code, err) == (0, "")
    assert differences(tmp_path / "run", trained(*given)) == []
    code, _, err = train("resume=run", "trust=true", "eval.episodes=2", "total_steps=400")
    assert code == 2
    assert "eval.episodes=2: this run has scores of training episodes, which would be mixed" in err


def test_a_sweep_says_what_its_scores_are_of(train):
    given = ["-m", env("Plain"), *SHORT[:-1], "hydra.sweep.dir=sweep"]
    assert "mean of the last ten training episodes" in train(*given, "seed=0,1", "eval.episodes=0")[1]
    out = train(*given, "eval.episodes=0,1", "hydra.sweep.dir=both")[1]
    assert re.search(r"eval.episodes=0 +-\d+.\d \(training episodes\)\n", out)
    assert re.search(r"eval.episodes=1 +-\d+.\d \(evaluations\)\n", out)


def test_without_an_episode_there_is_no_score(train, evaluate):
    code, out, _ = train(env("Plain"), *SHORT, "eval.episodes=0", "env.max_episode_steps=1000")
    assert code == 0
    assert "seed 0: no training episode ended after the random steps" in out
    command = next(line for line in out.splitlines() if "dpg-eval" in line).partition("dpg-eval ")[2]
    assert evaluate("run", "trust=true")[2].strip().endswith("no such checkpoint; there are latest, 200, 300")
    assert evaluate(*command.split())[0] == 0


def test_no_more_instances_than_the_run_uses(train):
    assert train(env("Counted"), *SHORT, "eval.episodes=3", "num_envs=2")[0] == 0
    assert (custom_envs.Counted.created, custom_envs.Counted.open_now) == (5, 0)


@pytest.mark.parametrize("more", [[], ["env_processes=2", "num_envs=2"]])
def test_a_simulator_that_dies_leaves_a_checkpoint_and_the_command_to_resume(train, tmp_path, more):
    code, _, err = train(env("Dies"), *SHORT, "checkpoint.every=1000", "env.kwargs.at=130", *more)
    assert code == 1
    said = "the environment Dies raised ConnectionError: lost the simulator on port 41451; "
    assert said + "resume with dpg-train resume=run trust=true" in err
    step = json.loads((tmp_path / "run/run.json").read_text())["last_step"]
    assert f"failed at step {step}: " in err
    assert (tmp_path / "run/checkpoints/latest").resolve().name == f"step_{step:09}"
    code, out, _ = train("resume=run", "trust=true", f"total_steps={step + 40}")
    assert code == 0
    assert f"resuming at step {step}" in out
    assert "note: seed 0: a new episode starts: the state of the last one was not saved" in out
    assert "a new episode starts" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("how", ["created", "ignored", "step", "default", "c"])
@pytest.mark.parametrize("more", [[], ["num_envs=2", "env_processes=2", "total_steps=1000"]])
def test_ctrl_c_is_ours_even_if_the_simulator_takes_it(train, tmp_path, how, more):
    code, _, err = train(env("TakesSignals"), *SHORT, "checkpoint.every=2000", f"env.kwargs.how={how}", *more)
    assert code == 130
    assert "stopped at step" in err
    assert len(os.listdir(tmp_path / "run/checkpoints")) > 2


def test_a_simulator_that_cannot_be_created_again_leaves_a_checkpoint(train, tmp_path):
    code, _, err = train(env("Licences"), *SHORT, "checkpoint.every=1000", "eval.episodes=2", "env.kwargs.most=8")
    assert code == 1
    assert "failed at step 200: an environment cannot be created again: env.id=custom_envs:Licences-v0" in err
    assert "resume with dpg-train resume=run trust=true" in err
    assert (tmp_path / "run/checkpoints/latest").resolve().name == "step_000000200"


def test_a_simulator_that_cannot_be_closed_hides_nothing(train, evaluate, tmp_path):
    code, _, err = train(env("Dies"), *SHORT, "env.kwargs.at=130", "+env.kwargs.closes=false")
    assert code == 1
    assert "raised ConnectionError: lost the simulator on port 41451; resume with " in err
    code, out, err = train(env("Dies"), *SHORT, "env.kwargs.at=10000", "+env.kwargs.closes=false", "hydra.run.dir=fine")
    assert (code, err) == (0, "")
    assert "done at step 300" in out
    assert "closing Dies raised ConnectionError: already closed" in (tmp_path / "fine/train.log").read_text()
    code, out, _ = evaluate("fine", "trust=true")
    assert code == 0
    assert "10 episodes: return" in out


def test_the_one_instance_is_created_once_even_if_it_cannot_be_copied(train):
    assert train(env("Licences"), *SHORT, "eval.episodes=0", "env.kwargs.most=1")[0] == 0


def test_a_worker_that_dies_leaves_a_checkpoint(train, tmp_path):
    given = [env("Dies"), *SHORT, "checkpoint.every=1000", "env.kwargs.at=-90", "num_envs=2", "env_processes=2"]
    code, _, err = train(*given)
    assert code == 1
    assert re.search(r"failed at step \d+: process [12] of 2 that steps Dies was killed by SIGSEGV; resume with", err)
    step = json.loads((tmp_path / "run/run.json").read_text())["last_step"]
    assert step > 0
    assert (tmp_path / "run/checkpoints/latest").resolve().name == f"step_{step:09}"


def test_a_simulator_may_change_the_working_directory(train, tmp_path):
    code, out, err = train(env("ChangesDirectory"), *SHORT)
    assert (code, err) == (0, "")
    assert "run folder   run" in out
    os.chdir(tmp_path)
    assert train("resume=run", "trust=true", "total_steps=350")[0] == 0
    os.chdir(tmp_path)
    assert train("-m", env("ChangesDirectory"), *SHORT[:-1], "seed=0,1", "hydra.sweep.dir=sweep", "init=run")[0] == 0
    assert (tmp_path / "sweep/1/run.json").exists()


def test_an_episode_without_end_ends_the_run(train, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 500)
    code, out, err = train("env=custom_envs:Endless-v0", *SHORT)
    assert code == 2
    assert "has no time limit of its own" in out
    assert "an episode has not ended after 500 steps" in err
    assert "env.max_episode_steps=1000" in err
    assert (tmp_path / "run/checkpoints/latest").resolve().name == "step_000000000"


# --- what is returned ---


@pytest.mark.parametrize("kind", ["vector", "matrix", "torch", "numpy", "bool", "int"])
def test_a_reward_may_be_any_number(train, tmp_path, kind):
    code, _, err = train(env("Rewards"), *SHORT, f"env.kwargs.kind={kind}")
    assert (code, err) == (0, "")
    if kind in ("vector", "matrix"):
        assert train(env("Plain"), *SHORT, "hydra.run.dir=plain")[0] == 0
        assert scores(tmp_path / "run") == scores(tmp_path / "plain")


@pytest.mark.parametrize(("kind", "value"), [("none", "None"), ("two", "array([")])
def test_a_reward_that_is_no_number_is_named_before_the_run(train, tmp_path, kind, value):
    code, _, err = train(env("Rewards"), *SHORT, f"env.kwargs.kind={kind}")
    assert code == 2
    assert f"Rewards.step() returned the reward {value}" in err
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_no_number_is_named_in_the_run(train):
    code, _, err = train(env("NoneLater"), *SHORT)
    assert code == 1
    assert "NoneLater.step() returned the reward None, not a number" in err


@pytest.mark.parametrize("name", ["OldStep", "OldReset", "NoSeed", "OldWrapperStep", "OldWrapperReset"])
def test_the_interface_of_gym_is_named(train, tmp_path, name):
    code, _, err = train(env(name), *SHORT)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert f"{name.replace('OldWrapper', 'Wrapped')}." in err
    assert "in Gymnasium" in err
    assert not (tmp_path / "run").exists()


def test_a_class_that_is_not_registered(train):
    code, _, err = train("env=custom_envs:Unregistered", *SHORT)
    assert code == 2
    assert 'gymnasium.register("Unregistered-v0", entry_point=Unregistered)' in err


def test_an_action_of_no_dimensions(train):
    code, _, err = train(env("Scalar"), *SHORT)
    assert (code, err) == (0, "")


def test_paths_in_arguments_are_stored_absolute(train, evaluate, tmp_path, monkeypatch):
    (tmp_path / "model.xml").write_text("a model")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [env("Reads"), *SHORT, "+env.kwargs.others=[../x,ant.xml,./a/../b,~/c]"]
    for folder, path in {"here": "./model.xml", "home": "~/model.xml"}.items():
        assert train(*given, f"env.kwargs.path={path}", f"hydra.run.dir={folder}")[0] == 0
    monkeypatch.chdir("/")
    for folder in ("here", "home"):
        stored = (tmp_path / folder / "config.yaml").read_text()
        assert f"path: {tmp_path}/model.xml" in stored
        assert [f"- {path}" in stored for path in (tmp_path.parent / "x", "ant.xml", tmp_path / "b")] == [True] * 3
        assert f"- {tmp_path}/c" in stored
        assert evaluate(str(tmp_path / folder), "trust=true")[0] == 0


def test_numbers_in_info_are_curves_and_part_of_an_evaluation(train, evaluate, tmp_path):
    given = [env("Success"), *SHORT, "eval.episodes=3", "num_envs=2"]
    assert train(*given)[0] == 0
    records = lines(tmp_path / "run/metrics.jsonl")
    names = {tag for record in records for tag in record if "/info/" in tag}
    assert names == {f"{kind}/info/{name}" for kind in ("train", "eval") for name in ("is_success", "energy")}
    rates = [record["eval/info/is_success"] for record in records if "eval/info/is_success" in record]
    assert len(rates) == 4
    assert {round(3 * rate, 9) % 1 for rate in rates} == {0.0}
    assert train(*given, "env_processes=2", "hydra.run.dir=processes")[0] == 0
    assert differences(tmp_path / "run", tmp_path / "processes") == []
    assert "info at the end of an episode: is_success " in evaluate("run", "trust=true")[1]


def test_info_is_resumed_exactly(train, signalled, trained, tmp_path):
    given = [env("Success"), *SHORT, "log.every=150"]
    assert signalled("step", 120, [signal.SIGTERM], *given)[0] == 143
    assert train("resume=run", "trust=true")[0] == 0
    assert differences(tmp_path / "run", trained(*given)) == []
    assert "custom_envs" in sys.modules
