"""`dpg-eval`: run a trained policy."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HELP = """\
dpg-eval: evaluate a trained policy, without exploration noise.

Examples
  dpg-eval outputs/Pendulum-v1/ddpg/2026-11-22_13-27-16-377661
  dpg-eval RUN_DIR checkpoint=latest episodes=100
  dpg-eval RUN_DIR checkpoint=50000 seed=7
  dpg-eval outputs                        lists the runs below a folder

Keys
  run         the run folder; run=RUN_DIR is the same as RUN_DIR
  checkpoint  best (default), latest, or a step
  episodes    how many (default 10)
  seed        of the episodes (default 0); they never repeat the episodes of the training's evaluations
  trust       true: import the module that an id such as my_pkg:MyEnv-v0 names, and pass strings to the environment
              that may be file paths (default false)

Flags
  --version   versions of dpg-cli, torch, gymnasium, mujoco and others
"""


def main() -> None:
    """The console script."""
    from dpg_cli.cli.machine import require_posix
    from dpg_cli.errors import DivergedError, UserError, one_line

    try:
        require_posix()
        sys.exit(_run_command(sys.argv[1:]))
    except UserError as error:
        print(f"dpg-eval: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except DivergedError as error:
        print(f"dpg-eval: failed: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        print(f"dpg-eval: failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _run_command(arguments: Sequence[str]) -> int:
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0

    from dpg_cli.cli.arguments import parse, print_versions, whole
    from dpg_cli.errors import UserError, one_line

    if "--version" in arguments:
        print_versions()
        return 0
    keys = ("run", "checkpoint", "episodes", "seed", "trust")
    values = parse(arguments, keys, required=("run",), bare="run")
    episodes, seed = whole(values, "episodes", 10, minimum=1), whole(values, "seed", 0, minimum=0)
    run, which = Path(values["run"]), values.get("checkpoint", "best")

    from dpg_cli.cli.folder import load_config, runs_below

    count = 0
    for below in runs_below(run):
        print(one_line(shlex.quote(str(below))))
        count += 1
    if count:
        raise UserError(f"{run}: holds {count} {'run' if count == 1 else 'runs'}; name one of them")
    settings = load_config("run", run, values.get("trust", "false"))

    import torch

    from dpg_cli.cli.build import environment_pool, sizes
    from dpg_cli.cli.memory import most_bytes
    from dpg_cli.cli.notes import SEED_IGNORED
    from dpg_cli.cli.progress import EvaluationProgress
    from dpg_cli.environments import evaluation
    from dpg_cli.environments.group import LocalEnvs
    from dpg_cli.environments.probe import ignores_seed
    from dpg_cli.seeding import Purpose, integer
    from dpg_cli.storage import checkpoint

    run = run.absolute()  # an environment may change the working directory
    env_id, pool = settings.env.id, environment_pool(settings)
    single = settings.eval.episodes == 0  # only one environment may exist
    if ignores_seed(pool, single=single or episodes == 1):
        print(f"note: {env_id}: {SEED_IGNORED}")
    first = pool()
    obs_dim, action_dim = sizes(first)
    most = most_bytes(settings, obs_dim, action_dim)
    actor, step = checkpoint.load_policy(checkpoint.find(run, which), most)
    if (obs_dim, action_dim) != (actor.obs_dim, actor.action_dim):
        raise UserError(
            f"env.id={env_id}: an observation has {obs_dim} numbers and an action {action_dim}; the policy expects "
            f"{actor.obs_dim} and {actor.action_dim}"
        )
    at_once = 1 if single else episodes
    envs = LocalEnvs([first, *(pool() for _ in range(at_once - 1))], "evaluation")

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        action: torch.Tensor = actor(torch.from_numpy(obs).to(actor.dtype))
        return action.numpy()

    env_seeds = [integer(seed, Purpose.TEST, episode) for episode in range(episodes)]
    progress = EvaluationProgress("dpg-eval")
    played = [
        evaluation.run_episodes(act, envs, [env_seeds[i : i + at_once]], seeds=[seed], step=step, progress=progress)
        for i in range(0, episodes, at_once)
    ]
    envs.close()
    returns, lengths = (np.concatenate([getattr(p, name)[0] for p in played]) for name in ("returns", "lengths"))
    _print(env_id, which, step, returns, lengths)
    if info := evaluation.mean_info(numbers for part in played for numbers in part.infos[0]):
        print("info at the end of an episode:", ", ".join(f"{one_line(key)} {mean:.4g}" for key, mean in info.items()))
    return 0


def _print(env_id: str, which: str, step: int, returns: np.ndarray, lengths: np.ndarray) -> None:
    table = Table(box=None, header_style="", pad_edge=False)
    for header in ("episode", "return", "length"):
        table.add_column(header, justify="right")
    for episode, (value, length) in enumerate(zip(returns, lengths, strict=True)):
        table.add_row(str(episode), f"{value:.2f}", str(length))
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print(
        f"{env_id}, checkpoint {which} (step {step:,}), "
        f"{len(returns)} {'episode' if len(returns) == 1 else 'episodes'}: "
        f"return {returns.mean():.2f} ± {returns.std():.2f}, length {lengths.mean():.1f}",
        soft_wrap=True,
    )
