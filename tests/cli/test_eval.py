"""`dpg-eval`."""

import json
import os
import re
import signal
import subprocess
import sys

import custom_envs
import glfw
import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import toy_envs
from commands import SMALL, TOY
from gymnasium import spaces

from dpg_cli.cli.folder import load_config
from dpg_cli.cli.play import Settings, play
from dpg_cli.cli.progress import EvaluationProgress


def test_eval_takes_the_folder_as_a_bare_word(train, evaluate, tmp_path):
    arguments = ["env=Pendulum-v1", *SMALL, "env.max_episode_steps=20"]
    folders = ["hydra.sweep.dir=sweeps/a", 'hydra.sweep.subdir="s=${seed}"']
    assert train("-m", *arguments, "seed=0,1", *folders)[0] == 0
    assert train(*arguments, "num_seeds=2", "hydra.run.dir=two")[0] == 0
    code, out, err = evaluate("sweeps/a/s=0", "episodes=2")
    assert (code, err) == (0, "")
    assert evaluate("run=sweeps/a/s=0", "episodes=2") == (0, out, "")
    assert evaluate("two/seed_1", "episodes=2")[0] == 0


def test_every_run_below_a_folder_is_evaluated(train, evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["env=Pendulum-v1", *SMALL, "env.max_episode_steps=20"]
    assert train("-m", *arguments, "seed=0,1", "hydra.sweep.dir=sweeps/a")[0] == 0
    assert train(*arguments, "num_seeds=2", "hydra.run.dir=two")[0] == 0
    below = ["sweeps/a/0", "sweeps/a/1", "two/seed_0", "two/seed_1"]
    settings = ["seed=0", "seed=1", "seed=0 num_seeds=1", "seed=1 num_seeds=1"]
    alone = {}
    for run in below:
        out = evaluate(run, "episodes=2")[1]
        alone[run] = re.search(r"return (-[\d.]+ ± [\d.]+), length", out)[1]
    for parent, runs in ((".", below), ("sweeps", below[:2]), ("two", below[2:]), (str(tmp_path), below)):
        code, out, err = evaluate(parent, "episodes=2", "out=result.json")
        assert (code, err) == (0, "")
        header, *rows = out.splitlines()
        assert re.split("  +", header)[1] == "settings that differ"
        differs = [settings[below.index(run)].removesuffix(" num_seeds=1" if parent == "two" else "") for run in runs]
        assert [re.split("  +", row)[1] for row in rows[:-1]] == differs
        assert [row.split()[0] for row in rows[:-1]] == [os.path.relpath(run, parent) for run in runs]
        assert all(alone[run] in row for run, row in zip(runs, rows, strict=False))
        assert rows[-1].startswith(f"td3 on Pendulum-v1, mean over {len(runs)} runs: -")
        written = json.loads((tmp_path / "result.json").read_text())["runs"]
        assert [os.path.relpath(own["run"]) for own in written] == runs


def test_a_run_that_cannot_be_evaluated_does_not_end_the_others(train, evaluate, tmp_path):
    arguments = ["env=Pendulum-v1", *SMALL, "env.max_episode_steps=20", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    assert train("-m", *arguments)[0] == 0
    for path in (tmp_path / "sweep/1/checkpoints").glob("best_*/policy.safetensors"):
        path.write_bytes(b"damaged")
    code, out, err = evaluate("sweep", "episodes=2", "out=result.json")
    assert code == 1
    assert list(json.loads((tmp_path / "result.json").read_text())["failed"]) == [f"{tmp_path}/sweep/1"]
    assert [row.split()[-1] for row in out.splitlines()[1:4]][1] == "failed"
    assert "mean over 2 runs" in out
    assert err.startswith(f"dpg-eval: {tmp_path}/sweep/1: ")
    assert err.count("\n") == 1
    code, out, err = evaluate("sweep", "checkpoint=7")
    assert (code, out) == (2, "")
    assert "none of 3 runs can be evaluated; " in err


def test_what_cannot_be_evaluated_leaves_no_folder(finished, evaluate, tmp_path):
    finished(TOY, *SMALL)
    for more in ([f"out={tmp_path}/new/folder/a.json"], ["video=new/folder/a.mp4"]):
        assert evaluate("run", "trust=true", "checkpoint=99", *more)[0] == 2
        assert not (tmp_path / "new").exists()


def test_the_file_of_an_evaluation(train, evaluate, tmp_path):
    assert train("env=custom_envs:Success-v0", *SMALL, "hydra.run.dir=run")[0] == 0
    out = evaluate("run", "trust=true", "episodes=5", "seed=3", "out=new/result.json")[1]
    result = json.loads((tmp_path / "new/result.json").read_text())
    assert len(result["returns"]) == len(result["lengths"]) == 5
    assert result["mean"] == pytest.approx(np.mean(result["returns"]))
    assert result["std"] == pytest.approx(np.std(result["returns"]))
    assert min(result["returns"]) <= result["low"] <= result["mean"] <= result["high"] <= max(result["returns"])
    assert result["info"].keys() == {"is_success", "energy"}
    assert (result["seed"], result["env_id"]) == (3, "custom_envs:Success-v0")
    assert result["versions"].keys() >= {"torch", "mujoco", "gymnasium", "dpg_cli"}
    assert f"step {result['step']})" in out
    assert evaluate("run", "trust=true", "episodes=1", "out=one.json")[0] == 0
    assert json.loads((tmp_path / "one.json").read_text())["low"] is None


# --- films ---


def frames(path):
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-",
    ]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, 16, 16)


@pytest.mark.parametrize("more", [[], ["eval.episodes=0"]])
def test_a_film_shows_the_episodes_and_changes_no_number(train, evaluate, tmp_path, more):
    """A frame's brightness is the number of its step."""
    assert train("env=custom_envs:Draws-v0", *SMALL, *more, "hydra.run.dir=run")[0] == 0
    given = ["run", "trust=true", "episodes=3"]
    plain = evaluate(*given)[1]
    code, out, err = evaluate(*given, "video=film.mp4")
    assert (code, err) == (0, "")
    assert out == f"{plain}video: {tmp_path}/film.mp4, 21 frames\n"
    assert [round(frame.mean() / 10) for frame in frames(tmp_path / "film.mp4")] == list(range(21))
    code, out, _ = evaluate(*given, "video=film.mp4", "video_episodes=all")
    assert out == f"{plain}video: {tmp_path}/film.mp4, 63 frames\n"
    assert [round(frame.mean() / 10) for frame in frames(tmp_path / "film.mp4")] == list(range(21)) * 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["film.mp4"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Plain", "cannot render: "),
        (
            "Draws-v0 env.kwargs.kind=unstored",
            "cannot render: its render_mode is None; its __init__ must set self.render_mode = render_mode",
        ),
        ("Draws-v0 env.kwargs.kind=raises", "cannot render: no OpenGL here; without a display, MuJoCo needs"),
        ("Draws-v0 env.kwargs.kind=none", "cannot render: render() returned NoneType, not a picture"),
        ("Draws-v0 env.kwargs.kind=float", "cannot render: render() returned float64 (16, 17, 3), not a picture"),
    ],
)
def test_what_cannot_be_filmed(train, evaluate, tmp_path, name, message):
    arguments = f"env=custom_envs:{name if '-v0' in name else f'{name}-v0'}".split()
    assert train(*arguments, *SMALL, "hydra.run.dir=run")[0] == 0
    code, out, err = evaluate("run", "trust=true", "video=film.mp4")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*film*"))


@pytest.mark.parametrize("frame", [1, 15])
def test_a_signal_leaves_no_film(train, evaluate, tmp_path, monkeypatch, frame):
    assert train("env=custom_envs:Draws-v0", *SMALL, "hydra.run.dir=run")[0] == 0
    render, closed = custom_envs.Draws.render, []

    def interrupted(self):
        if self.at == frame:
            os.kill(os.getpid(), signal.SIGTERM)
        return render(self)

    monkeypatch.setattr(custom_envs.Draws, "render", interrupted)
    monkeypatch.setattr(custom_envs.Draws, "close", lambda self: closed.append(self))
    assert evaluate("run", "trust=true", "video=new/film.mp4") == (128 + signal.SIGTERM, "", "")
    assert not (tmp_path / "new").exists()
    assert closed


def test_an_environment_that_the_policy_does_not_fit_is_closed(finished, evaluate, monkeypatch):
    finished(TOY, *SMALL)
    closed = []
    monkeypatch.setattr(toy_envs.Reach, "observation_space", spaces.Box(-1, 1, (3,), np.float64))
    monkeypatch.setattr(toy_envs.Reach, "_obs", lambda self: np.zeros(3))
    monkeypatch.setattr(toy_envs.Reach, "close", lambda self: closed.append(self))
    code, _, err = evaluate("run", "trust=true")
    assert (code, "an observation has 3 numbers and an action 1; the policy expects 2 and 1" in err) == (2, True)
    assert len(closed) == 3  # two were compared


def test_no_more_is_rendered_than_a_film_keeps(trained, tmp_path, monkeypatch):
    run, rendered = trained("env=custom_envs:Draws-v0", *SMALL), []
    render = custom_envs.Draws.render
    monkeypatch.setattr(custom_envs.Draws, "render", lambda self: (rendered.append(self.at), render(self))[1])
    settings = Settings(checkpoint="best", episodes=1, seed=0, video=tmp_path / "film.mp4", film_seconds=0.5)
    played = play(run, load_config("run", run, "true"), settings, EvaluationProgress("test"))
    assert rendered == list(range(10))  # of 20 a second
    assert (played.frames, played.lengths.tolist()) == (10, [20])


def test_without_imageio_a_film_says_what_to_install(train, evaluate, monkeypatch):
    assert train("env=custom_envs:Draws-v0", *SMALL, "hydra.run.dir=run")[0] == 0
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, _, err = evaluate("run", "trust=true", "video=film.mp4")
    assert code == 2
    assert "pip install -e '.[video]' in the clone of dpg-cli" in err


def test_episodes_are_shown_where_there_is_a_display(train, evaluate, monkeypatch):
    assert train("env=custom_envs:Draws-v0", *SMALL, "hydra.run.dir=run")[0] == 0
    given = ["run", "trust=true", "episodes=2"]
    plain = evaluate(*given)[1]
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code, _, err = evaluate(*given, "render=true")
    assert (code, err) == (2, "dpg-eval: render=true: there is no display; video=FILE.mp4 films the first episode\n")
    no_display = (code, "", err)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(glfw, "init", lambda: False)
    assert evaluate(*given, "render=true") == no_display
    monkeypatch.setattr(glfw, "init", lambda: True)
    assert evaluate(*given, "render=true") == (0, plain, "")
    assert custom_envs.Draws.shown == 2 * 21
    lacks = gymnasium.error.DependencyNotInstalled("pygame is not installed")
    monkeypatch.setattr(custom_envs.Draws, "step", lambda *_: (_ for _ in ()).throw(lacks))
    reason = "env.id=custom_envs:Draws-v0: cannot render: pygame is not installed"
    assert evaluate(*given, "render=true") == (2, "", f"dpg-eval: {reason}\n")


def test_eval(train, evaluate, tmp_path):
    assert train(TOY, *SMALL, "algo.normalize_obs=true", "hydra.run.dir=run")[0] == 0
    code, out, err = evaluate("run=run", "episodes=3", "trust=true")
    assert (code, err) == (0, "")
    assert "3 episodes" in out
    assert evaluate("run=run", "episodes=3", "trust=true")[1] == out
    assert evaluate("run=run", "episodes=3", "trust=true", "seed=1")[1] != out
    for which in ("best", "latest", "60"):
        assert evaluate("run=run", f"checkpoint={which}", "trust=true")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere"], "run=nowhere: no such folder"),
        (["run=.", "video=a.mp4"], "video=a.mp4: needs a single run; . holds 1"),
        (["run=run", "video=a.avi"], "video=a.avi: must end in .mp4"),
        (["run=run", "out="], "out=: is empty; name a file that ends in .json"),
        (["run=run", "video=empty"], "video=empty: is a folder; name a file in it that ends in .mp4"),
        (["run=run", "out=a.txt"], "out=a.txt: must end in .json"),
        (["run=run", "video_episodes=all"], "video_episodes: needs video=FILE.mp4"),
        (["run=run", "video=a.mp4", "video_episodes=2"], "video_episodes=2: must be first or all"),
        (["run=run", "render=1"], "render=1: should be true or false"),
        (["empty"], "run=empty: not a run folder"),
        (["nowhere"], "run=nowhere: no such folder"),
        (["x" * 300], "no such folder"),
        (["run=~/x"], "write run=$HOME/x"),
        (["run", "--episodes"], "--episodes: not of the form key=value"),
        (["episodes=3"], "run: missing"),
        (["run=run", "episode=3"], "episode: unknown key; did you mean episodes?"),
        (["run=run", "episodes=0"], "episodes=0"),
        (["run=run", "episodes=1.5"], "episodes=1.5"),
        (["run=run", "seed=-1"], "seed=-1"),
        (["run=run", "run"], "run: given twice"),
        (["run=run", "run=run"], "given twice"),
        (["run=run"], "trust=true"),
        (["run=run", "trust=true", "checkpoint=31"], "there are latest, best, 0, "),
        (["run=run", "trust=true", "checkpoint=../../x"], "no such checkpoint"),
    ],
)
def test_eval_mistakes(finished, evaluate, arguments, message):
    finished(TOY, *SMALL, "checkpoint.keep=3")
    os.mkdir("empty")
    code, _out, err = evaluate(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("broken", ["close", "append_data"])
def test_a_disk_that_is_full_while_filming_leaves_no_film(train, evaluate, tmp_path, monkeypatch, broken):
    """ffmpeg, a program of its own, does not tell when it cannot write; so the film is read back."""
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    assert train("env=custom_envs:Draws-v0", *SMALL, "hydra.run.dir=run")[0] == 0
    (tmp_path / "v.mp4").write_text("an earlier film")
    writer = imageio.get_writer

    def get_writer(path, **options):
        made = writer(path, **options)
        if broken == "close":
            close = made.close
            made.close = lambda: [close(), os.truncate(path, 100)]
        else:
            made.append_data = full
        return made

    def full(_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(imageio, "get_writer", get_writer)
    code, _, err = evaluate("run=run", "trust=true", "video=v.mp4", "checkpoint=latest", "episodes=1")
    assert code == 1
    assert "v.mp4: the film cannot be" in err
    assert "bytes are free" in err
    assert (tmp_path / "v.mp4").read_text() == "an earlier film"
    assert not list(tmp_path.glob(".*partial*"))
