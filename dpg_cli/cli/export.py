"""`dpg-export`: write a trained policy to a file for other programs."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from dpg_cli.export import Format
    from dpg_cli.policy import Policy

OBSERVATIONS = 1_000  # for the check of a file
HELP = """\
dpg-export: write a trained policy to a file for other programs.

Examples
  dpg-export outputs/Pendulum-v1/ddpg/2026-11-22_13-27-16-377661
  dpg-export RUN_DIR format=c out=pendulum.h         void pendulum_act(const float *obs, float *action)
  dpg-export RUN_DIR format=pt2 checkpoint=latest

Keys
  run         the run folder; run=RUN_DIR is the same as RUN_DIR
  checkpoint  best (default), latest, or a step
  format      onnx (default); pt2: PyTorch's format, loaded without dpg-cli; c: a C99 header without dependencies
  out         the file (default policy.onnx, policy.pt2 or policy.h); NAME.h defines NAME_act
  force       true: overwrite an existing file (default false)
  trust       true: the environment may import modules and open files that the run names, as for dpg-eval; it runs only
              if the run has no replay (default false)

Flags
  --version   versions of dpg-cli, torch, gymnasium, mujoco and others

Input: the flattened observation, float32. Output: the action in the environment's units, within its bounds. The file is
kept only if its actions for up to 1,000 observations are the policy's, to 1e-5 of their range.
"""


KEYS = ("run", "checkpoint", "format", "out", "force", "trust")


def main() -> None:
    """The console script."""
    from dpg_cli.cli.arguments import run_command

    run_command("dpg-export", HELP, _export)


def _export(arguments: Sequence[str]) -> int:
    from dpg_cli.cli.arguments import parse, readable, true_or_false

    values = parse(arguments, KEYS, required=("run",), bare="run")
    force, _ = true_or_false(values, "force"), true_or_false(values, "trust")

    from dpg_cli.cli import signals
    from dpg_cli.cli.here import below_here, remember
    from dpg_cli.errors import one_line
    from dpg_cli.export import export
    from dpg_cli.policy import load_policy

    remember()  # an environment may change the working directory
    name, chosen = _format(values)
    run, which = Path(values["run"]).absolute(), values.get("checkpoint", "best")
    policy = load_policy(values["run"], which)
    out = _out(values, name, chosen, force=force).absolute()
    obs, origin = _observations(values, run, policy)
    metadata = {name: value for name, value in policy.metadata.items() if name != "network"}
    metadata["run"] = str(below_here(run))
    difference = export(policy, chosen, metadata, obs, out, signals.finish)
    size = out.stat().st_size
    at = "step" if policy.config.get("dataset") is None else "update"
    lines = [one_line(f"{below_here(out)}: {policy.env_id}, checkpoint {which} ({at} {policy.step:,}), {size:,} bytes")]
    if difference is None:
        lines.append(f"not verified: there is no working C compiler here ({', '.join(chosen.tools)})")
    else:
        checked = f"verified with {chosen.runner} on {len(obs):,} observations {origin}"
        lines.append(f"{checked}: largest difference {difference:.1e} of the action's range")
    with readable():
        print(*lines, sep="\n")
    return 0


def _format(values: Mapping[str, str]) -> tuple[str, "Format"]:
    """The format that is asked for, by name.

    Raises:
        UserError: there is no such format, or a package that it needs is not installed.
    """
    from dpg_cli.errors import UserError, to_install
    from dpg_cli.export import FORMATS

    name = values.get("format", "onnx")
    if name not in FORMATS:
        raise UserError(f"format={name}: should be one of {', '.join(FORMATS)}")
    if missing := [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]:
        raise UserError(f"format={name}: needs {', '.join(missing)}; {to_install('export')}")
    return name, FORMATS[name]


def _out(values: Mapping[str, str], name: str, chosen: "Format", *, force: bool) -> Path:
    """The file to write.

    Raises:
        UserError: it exists, cannot be written, or has a name that does not fit the format.
    """
    from dpg_cli.cli.arguments import output_file
    from dpg_cli.errors import UserError
    from dpg_cli.export import FORMATS, check_name

    default = f"policy{chosen.suffix}"
    out = Path(values.get("out", default))
    for other, described in FORMATS.items():
        if "format" not in values and other != name and out.suffix == described.suffix:
            raise UserError(f"out={out}: add format={other}; without it, the format is {name} ({chosen.suffix})")
    if name == "c" and out.suffix == chosen.suffix:
        check_name(out)
    existed = os.path.exists(out)
    output_file(values, "out", default, [chosen.suffix])
    if existed and not force:
        raise UserError(f"out={out}: already exists; force=true overwrites it")
    return out


def _observations(values: Mapping[str, str], run: Path, policy: "Policy") -> tuple["np.ndarray", str]:
    """Flat observations for the check, `(N, obs_dim)`, and where they are from.

    Raises:
        UserError: the replay is damaged; or it is missing, and the environment cannot be used.
        ExportError: no observation of the environment is finite in float32.
    """
    from dpg_cli.errors import ExportError, UserError
    from dpg_cli.storage.shards import some_observations

    try:
        stored = _finite(some_observations(run / "replay", policy.obs_dim, OBSERVATIONS))
    except UserError as error:
        raise UserError(f"{error}; without the folder replay/, evaluation episodes take its place") from error
    if len(stored) > 1:
        return stored, "of the replay"
    played = _finite(_from_episodes(values, run, policy))
    if not len(played):
        raise ExportError(f"{policy.env_id}: no observation is finite in float32, the type of exported files")
    return played, "of evaluation episodes"


def _finite(obs: "np.ndarray") -> "np.ndarray":
    """The observations that are finite in float32, the type of exported files."""
    import numpy as np

    with np.errstate(over="ignore"):
        kept: np.ndarray = obs[np.isfinite(obs.astype(np.float32)).all(axis=-1)]
    return kept


def _from_episodes(values: Mapping[str, str], run: Path, policy: "Policy") -> "np.ndarray":
    """Flat observations of episodes with the policy, `(OBSERVATIONS, obs_dim)`.

    Raises:
        UserError: the environment cannot be created, or its spaces are not those of the policy.
        SimulatorError: the environment raised.
        DivergedError: an observation, an action or a reward is not finite.
    """
    import numpy as np

    from dpg_cli.cli.build import environment_pool, sizes
    from dpg_cli.cli.folder import load_config
    from dpg_cli.environments.group import LocalEnvs
    from dpg_cli.environments.stepper import Stepper, by_position
    from dpg_cli.errors import UserError
    from dpg_cli.seeding import Purpose, integer

    config = load_config("run", run, values.get("trust", "false"))
    with closing(LocalEnvs([environment_pool(config)()], "evaluation")) as envs:
        if sizes(envs.example) != (policy.obs_dim, policy.action_space.low.size):
            raise UserError(f"env.id={config.env.id}: its observations or actions are not those of the policy")
        stepper, obs = Stepper(envs, [0]), np.empty((1, 1, policy.obs_dim), policy.dtype)
        found: list[np.ndarray] = []
        ended, episodes = True, 0
        while len(found) < OBSERVATIONS:
            if ended:
                envs.reset([integer(0, Purpose.TEST, episodes)], by_position(obs))
                episodes += 1
            found.append(obs[0, 0].copy())
            _, terminated, truncated = stepper.step(f"step {len(found)} of the check", policy.scaled(obs), obs)
            ended = bool(terminated | truncated)
    return np.array(found)
