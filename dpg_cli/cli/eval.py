"""`dpg-eval`: run a trained policy."""

from collections.abc import Sequence
from pathlib import Path

HELP = """\
dpg-eval: evaluate a trained policy, without exploration noise.

Examples
  dpg-eval outputs/Pendulum-v1/ddpg/2026-11-22_13-27-16-377661
  dpg-eval RUN_DIR checkpoint=latest episodes=100 out=result.json
  dpg-eval RUN_DIR checkpoint=50000 seed=7
  dpg-eval RUN_DIR video=policy.mp4
  dpg-eval SWEEP_DIR                      evaluates every run below a folder, one table

Keys
  run             the run folder; run=RUN_DIR is the same as RUN_DIR. A folder of several runs: all of them
  checkpoint      best (default), latest, or a step
  episodes        how many (default 10)
  seed            of the episodes (default 0); they never repeat the episodes of the training's evaluations
  out             FILE.json: also write returns, lengths, mean, interval and versions to a file
  video           FILE.mp4: film the first episode (needs the extra video)
  video_episodes  first (default) or all
  render          true: show the episodes in a window
  trust           true: import the module that an id such as my_pkg:MyEnv-v0 names, and pass strings to the
                  environment that may be file paths (default false)

Flags
  --version       versions of dpg-cli, torch, gymnasium, mujoco and others
"""

KEYS = ("run", "checkpoint", "episodes", "seed", "out", "video", "video_episodes", "render", "trust")


def main() -> None:
    """The console script."""
    from dpg_cli.cli.arguments import run_command

    run_command("dpg-eval", HELP, _evaluate)


def _evaluate(arguments: Sequence[str]) -> int:
    from dpg_cli.cli.arguments import output_file, parse, true_or_false, whole
    from dpg_cli.errors import UserError

    values = parse(arguments, KEYS, required=("run",), bare="run")
    episodes, seed = whole(values, "episodes", 10, minimum=1), whole(values, "seed", 0, minimum=0)
    watch, trust = true_or_false(values, "render"), values.get("trust", "false")
    if (which := values.get("video_episodes", "first")) not in ("first", "all"):
        raise UserError(f"video_episodes={which}: must be first or all")

    from dpg_cli.cli import film
    from dpg_cli.cli.folder import load_config, runs_below

    run = Path(values["run"]).absolute()  # an environment may change the working directory
    runs = list(runs_below(run))
    if watch and not film.has_display():
        raise UserError("render=true: there is no display; video=FILE.mp4 films the first episode")
    for key in ("render", "video"):
        if runs and key in values:
            raise UserError(f"{key}={values[key]}: needs a single run; {values['run']} holds {len(runs)}")
    video = out = None
    if "video" in values:
        if watch:
            raise UserError("video, render: give one of them")
        video = output_file(values, "video", "", (".mp4",)).absolute()
        film.require_imageio()
        film.render_without_display()
    elif "video_episodes" in values:
        raise UserError("video_episodes: needs video=FILE.mp4")
    if "out" in values:
        out = output_file(values, "out", "", (".json",)).absolute()
    config = None if runs else load_config("run", Path(values["run"]), trust)

    from dpg_cli.cli.eval_report import evaluate_all, evaluate_one
    from dpg_cli.cli.play import Settings

    settings = Settings(
        checkpoint=values.get("checkpoint", "best"),
        episodes=episodes,
        seed=seed,
        video=video,
        film_all=which == "all",
        watch=watch,
    )
    if config is None:
        return evaluate_all(run, runs, trust, settings, out)
    return evaluate_one(run, config, settings, out)
