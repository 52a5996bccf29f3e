"""`dpg-eval`: run a trained policy."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HELP = """\
dpg-eval: evaluate a trained policy, without exploration noise.

Examples
  dpg-eval run=outputs/Pendulum-v1/ddpg/2026-11-22_13-27-16-377661
  dpg-eval run=RUN_DIR checkpoint=latest episodes=100
  dpg-eval run=RUN_DIR checkpoint=50000 seed=7

Keys
  run         a run folder
  checkpoint  best (default), latest, or a step
  episodes    how many (default 10)
  seed        of the episodes (default 0); they never repeat the episodes of the training's evaluations
  trust       true: import the module that an id such as my_pkg:MyEnv-v0 names, and pass strings to the environment
              that may be file paths (default false)
"""


def main() -> None:
    """The console script."""
    from dpg_cli.errors import DivergedError, UserError, one_line

    try:
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

    from dpg_cli.cli.arguments import parse, whole
    from dpg_cli.errors import UserError

    values = parse(arguments, ("run", "checkpoint", "episodes", "seed", "trust"), required=("run",))
    episodes, seed = whole(values, "episodes", 10, minimum=1), whole(values, "seed", 0, minimum=0)
    run, which = Path(values["run"]), values.get("checkpoint", "best")

    from dpg_cli.cli.folder import load_config

    settings = load_config("run", run, values.get("trust", "false"))
    if members := sorted(run.glob("seed_*/config.yaml")):
        raise UserError(f"run={run}: holds several seeds; name one, such as run={members[0].parent}")

    import torch

    from dpg_cli.cli.build import environment_maker
    from dpg_cli.cli.memory import most_bytes
    from dpg_cli.cli.progress import EvaluationProgress
    from dpg_cli.environments import evaluation
    from dpg_cli.environments.group import LocalEnvs
    from dpg_cli.seeding import Purpose, integer
    from dpg_cli.storage import checkpoint

    env_id, new_env = settings.env.id, environment_maker(settings)
    first = new_env()
    observed, acting = first.observation_space.shape, first.action_space.shape
    assert observed is not None
    assert acting is not None
    most = most_bytes(settings, *observed, *acting)
    actor, step = checkpoint.load_policy(checkpoint.find(run, which), most)
    if (observed, acting) != ((actor.obs_dim,), (actor.action_dim,)):
        raise UserError(f"env.id={env_id}: observations and actions are {observed} and {acting}, unlike the policy's")
    envs = LocalEnvs([first, *(new_env() for _ in range(episodes - 1))], "evaluation")

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        action: torch.Tensor = actor(torch.from_numpy(obs).to(actor.dtype))
        return action.numpy()

    env_seeds = [integer(seed, Purpose.TEST, episode) for episode in range(episodes)]
    progress = EvaluationProgress("dpg-eval")
    trajectories = evaluation.run_episodes(act, envs, [env_seeds], seeds=[seed], step=step, progress=progress)
    envs.close()
    _print(env_id, which, step, trajectories.returns[0], trajectories.lengths[0])
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
        f"{env_id}, checkpoint {which} (step {step:,}), {len(returns)} episodes: "
        f"return {returns.mean():.2f} ± {returns.std():.2f}, length {lengths.mean():.1f}",
        soft_wrap=True,
    )
