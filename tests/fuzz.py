#!/usr/bin/env python
"""Random command lines of `dpg-train` and `dpg-eval`. Each must be answered, and none may crash or hang.

    python tests/fuzz.py                       # 2,000 command lines
    python tests/fuzz.py seed=7 cases=500
    python tests/fuzz.py seed=7 case=17        # one again, with its output

A command line may exit with 0 or 2, within 10 s, with at most three lines on stderr and no traceback. The training
itself is replaced by nothing. Each runs in a process of its own, forked from this one, which has imported everything.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SECONDS = 10.0
LINES = 3  # on stderr

KEYS = (
    *("algo", "env", "noise", "experiment", "seed", "num_seeds", "num_envs", "total_steps", "random_steps", "device"),
    *("learning_starts", "updates_per_step", "buffer_size", "share_next_obs", "truncation_bootstraps", "threads"),
    *("compile", "env_threads", "env_processes", "precision", "eval", "eval.every", "eval.episodes", "log.every"),
    *("checkpoint.every", "checkpoint.keep", "algo.name", "algo.discount", "algo.tau", "algo.actor_lr", "noise.theta"),
    *("algo.critic_lr", "algo.batch_size", "algo.hidden_sizes", "algo.hidden_sizes.0", "algo.num_critics", "env.id"),
    *("algo.policy_noise", "algo.policy_delay", "noise.name", "noise.scale", "noise.decay_steps", "env.kwargs"),
    *("env.kwargs.g", "env.kwargs.render_mode", "env.kwargs.a.b", "env.max_episode_steps", "env.total_steps", "resume"),
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.searchpath", "hydra.verbose", "hydra.mode"),
    *("hydra.job.name", "hydra.job.chdir", "hydra.job_logging", "hydra.sweeper.params", "hydra.sweeper.max_batch_size"),
    *("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/help", "hydra", "hydra.output_subdir", "algo/td3"),
    *("gamma", "lr", "polyak", "algo.lr", "algo.gamma", "net_arch"),
    *("env_id", "noise.sigma", "trust", "run", "episodes"),
    *("", ".", "a.b.c", "seed.x", "algo..tau", "algo.", ".algo"),
    *("algo@noise", "seed@", "é", "a b", "1", "algo[0]", "/"),
)
VALUES = (
    *("0", "1", "-1", "3", "1e3", "1e400", "nan", "inf", "-0.0", "0x10", "1_000", "9" * 40, "1.5", "true", "null", ""),
    *("td3", "ddpg", "td3/without_delay", "td4", "gaussian"),
    *("ou", "none", "td3_paper", "td3_vs_ddpg", "overestimation"),
    *("Pendulum-v1", "HalfCheetah-v4", "CartPole-v1", "pendulum", "toy:X-v0", "a/b-v0", "..", "/", "a:b:c", "a" * 3000),
    *("cpu", "cuda", "cuda:99", "float64", "auto", "basic", "joblib", "run", "runs/a", "../x", "/dev/null/x", "~/x"),
    *("[64,64]", "[64, 64]", "[]", "[[1]]", "[", "]", "[1,", "{a:1}", "{a:[1,{b:2}]}", "{", "{}", "{1:2}", "[" * 600),
    *("[" * 99 + "]" * 99, "{a:" * 99 + "1" + "}" * 99, "${a" * 99 + "}" * 99, "f(" * 99 + ")" * 99),
    *("'a'", '"a b"', "'open", '"', "'", "\\", "a\\", "a=b", "=", ","),
    *("1,", ",1", "a b", " 5", "5 ", ":", "@", "$", "#"),
    *("${seed}", "${nothing}", "${algo}", "${total_steps}", "${oc.env:HOME}", "${oc.env:NO}", "${now:%Y}", "${", "${}"),
    *("${oc.create:[1]}", "${hydra:job.num}", "${path_name:[1]}", "${path_name:}", "${oc.decode:'['}", "${..seed}"),
    *("1,2", "td3,ddpg", "range(3)", "range(0)", "range(3,1)", "range(1e9)", "range(0,1,0)", "range(a)", "choice(1,2)"),
    *("choice()", "interval(0,1)", "glob(*)", "glob([t*],exclude=td3)"),
    *("shuffle(1,2)", "sort(3,1)", "foo(1)", "int(1.5)"),
    *("tag(a,choice(1,2))", "str([1])", "json_str({a:1})", "extend_list(1)", "int(a)", "bool(x)", "[1],[2]", "???"),
    *("é", "🦾", "\x1b[31m", "a\nb", "\udcff", "file://x"),
    *("pkg://hydra.conf", "gymnasium://", "RUN", "MULTIRUN", "bash"),
)
FLAGS = (
    *("-m", "--multirun", "--resolve", "-h", "--help", "--version", "--hydra-help", "--info", "-i", "-sc", "-p", "-c"),
    *("--cfg", "--cfg=job", "--cfg=hydra", "--cfg=all", "--cfg=x", "--package", "--config-dir", "-cd", "--run", "-r"),
    *("--config-name=x", "--config-path=x", "--experimental-rerun", "--shell-completion", "--env", "--lr=1", "-", "--"),
    *("-x", "--info=all", "--total-timesteps", "--multirun=1", "--resolve=2", "-mx", "-h=1", "---", "--=", "-m=2"),
)
WORDS = (
    *("job", "hydra", "all", "config", "defaults", "defaults-tree", "plugins", "searchpath", "algo", "seed", "=", "3"),
    *("install=bash", "uninstall=fish", "query=bash", "install=x", "install=[1]"),
    *("install", "query=", "a.b", "_global_"),
    *("my_configs", "nowhere", ".", "", " ", "run", "[64,", "64]"),
    *("td3,", "ddpg", "~algo", "~seed", "~", "+", "++", "@"),
)
PREFIXES = ("", "", "", "", "", "", "+", "++", "~", "+~", " ")


class Case(NamedTuple):
    """A program, `train` or `eval`, and its arguments."""

    program: str
    arguments: list[str]


def draw(seed: int, number: int) -> Case:
    """The command line of a case."""
    rng = random.Random(f"{seed} {number}")

    def override() -> str:
        key = rng.choice(KEYS)
        if key and rng.random() < 0.15:  # a typing error
            at = rng.randrange(len(key))
            key = rng.choice([key[:at] + key[at + 1 :], key[:at] + rng.choice("abc._/@") + key[at:], key.upper()])
        value = rng.choice(VALUES)
        if rng.random() < 0.1:
            value = rng.choice(["[{}]", "{a:{}}", "{},{}", "'{}'", "choice({})", "str({})"]).replace("{}", value)
        return f"{rng.choice(PREFIXES)}{key}={value}"

    if rng.random() < 0.1:
        words = [override() if rng.random() < 0.6 else rng.choice([*WORDS, *FLAGS, *VALUES]) for _ in range(3)]
        return Case("eval", words[: rng.randint(0, 3)])
    arguments = [override() for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 5]))]
    likely = rng.random()
    if likely < 0.3:
        arguments.append("-m")
    elif likely < 0.5:
        arguments += ["--cfg", rng.choice(["job", "hydra", "all"])]
        arguments += ["--resolve"] if rng.random() < 0.5 else []
    elif likely < 0.7:
        arguments.append(rng.choice(FLAGS))
    if rng.random() < 0.25:
        arguments.append(rng.choice(WORDS))
    if rng.random() < 0.5:
        rng.shuffle(arguments)
    if rng.random() < 0.7:
        arguments.insert(0, "env=Pendulum-v1")  # so that an answer about another key is reached
    return Case("train", arguments)


def problem(code: object, err: str) -> str | None:
    """What is wrong with an answer."""
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in err:
        return "a traceback"
    if err.count("\n") > LINES:
        return f"{err.count(chr(10))} lines on stderr"
    return "exit code 2 without a word" if code == 2 and not err.strip() else None


def prepare(folder: Path) -> None:
    """What command lines may name."""
    (folder / "my_configs" / "noise").mkdir(parents=True)
    (folder / "my_configs" / "noise" / "loud.yaml").write_text("name: gaussian\nscale: 1.0\n")


def train_nothing(*_: object, **__: object) -> object:
    """In place of `job.run`."""
    from dpg_cli.cli import job

    return job.Result(0)


def _child(case: Case, folder: Path) -> None:
    """Answer a command line, and leave."""
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from dpg_cli.cli import eval as eval_command
    from dpg_cli.cli import job, train

    job.run = train_nothing  # type: ignore[assignment]
    code = 70
    try:
        sys.argv = [f"dpg-{case.program}", *case.arguments]
        (train if case.program == "train" else eval_command).main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(case: Case) -> tuple[str | None, float, str, str]:
    """What is wrong with the answer to a command line, the seconds it took, stdout and stderr."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        begun = time.monotonic()
        if (child := os.fork()) == 0:
            _child(case, folder)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < begun + SECONDS:
            time.sleep(0.002)
        seconds = time.monotonic() - begun
        if ended[0] == 0:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
        wrong = f"no answer in {SECONDS:.0f} s" if ended[0] == 0 else problem(os.waitstatus_to_exitcode(ended[1]), err)
        return wrong, seconds, out, err


def main() -> None:
    import dpg_cli.cli.eval
    import dpg_cli.cli.resume
    import dpg_cli.cli.sweep
    import dpg_cli.cli.train  # noqa: F401
    from dpg_cli import config
    from dpg_cli.cli.arguments import parse, whole

    values = parse(sys.argv[1:], ("seed", "cases", "case"), required=())
    seed, failed, longest = whole(values, "seed", 0, minimum=0), 0, 0.0
    config.register()
    config.validate(config.compose([]))
    numbers: Sequence[int] = range(whole(values, "cases", 2000, minimum=1))
    if "case" in values:
        numbers = [whole(values, "case", 0, minimum=0)]
    for number in numbers:
        case = draw(seed, number)
        wrong, seconds, out, err = answer(case)
        longest = max(longest, seconds)
        failed += wrong is not None
        if wrong is not None or "case" in values:
            print(f"{number}: dpg-{case.program} {case.arguments!a} [{seconds:.1f} s] {wrong or 'ok'}", flush=True)
            for line in [*(out.splitlines() if "case" in values else []), *err.splitlines()[-6:]]:
                print(f"    {line[:300]!a}")
    print(f"seed {seed}: {len(numbers) - failed} of {len(numbers)} passed, the longest answer took {longest:.1f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
