#!/usr/bin/env python
"""Whether training on a GPU is right, and how fast it is.

    python scripts/measure/gpu.py
    python scripts/measure/gpu.py parts=right,updates compile=true out=gpu.json
    python scripts/measure/gpu.py wheels=.whl seconds=480 out=gpu.json

It checks, prints a table, and trains ten seeds for the time that is left, of `seconds` in all:

    right     the GPU against the CPU in float64, 200 updates, 1 and 4 seeds; graphs against single operations;
              a training that was interrupted against one that was not
    updates   updates alone, for 1, 4, 16 and 64 seeds: captured and by single operations; the share spent in kernels
    steps     training steps on HalfCheetah-v4, for 1, 16 and 64 seeds; single operations for 1
    training  experiment=td3_paper, HalfCheetah-v4, ten seeds at once

It runs from a bare checkout on a machine with torch and no network. What else is needed can be carried along as a
folder of wheels, which `wheels=` names. Make it elsewhere, for the other machine's Python (here 3.12):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 -d .whl \\
        gymnasium mujoco mujoco-core hydra-core omegaconf pydantic pydantic_core annotated-types typing-inspection \\
        typing_extensions glfw pyopengl farama-notifications
    pip wheel --no-deps -w .whl antlr4-python3-runtime==4.9.3

(numpy, rich, safetensors, tensorboard and cloudpickle are expected there; name them too where they are missing.)
"""

import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("right", "updates", "steps", "training")
KEYS = ("parts", "seconds", "compile", "wheels", "out", "env_threads", "env_processes")
CHEETAH = ["env=HalfCheetah-v4"]
OBS_DIM, ACTION_DIM = 17, 6
SEEDS = (1, 4, 16, 64)


def main() -> None:
    start = time.monotonic()
    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if "wheels" in arguments:
        install(Path(arguments["wheels"]))
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    from dpg_cli.cli.arguments import parse, run_script

    run_script("gpu.py", lambda: measure(parse(sys.argv[1:], KEYS, ()), start))


def install(wheels: Path) -> None:
    """Make the packages in a folder of wheels importable, here and in the processes that this one starts."""
    site = tempfile.mkdtemp(prefix="site_")
    flags = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, *map(str, wheels.glob("*.whl"))], check=True)
    sys.path.insert(0, site)


def measure(values: Mapping[str, str], start: float) -> None:
    from dpg_cli import config
    from dpg_cli.errors import UserError

    parts = values.get("parts", ",".join(PARTS)).split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"parts={values['parts']}: there is no {unknown.pop()}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} finds no GPU")
    config.register()
    seconds, compiled = float(values.get("seconds", "480")), values.get("compile", "false")
    keys = [f"compile={compiled}"]
    keys += [f"{key}={values[key]}" for key in ("env_threads", "env_processes") if key in values]
    result: dict[str, Any] = {"machine": machine(), "compile": compiled}
    print(json.dumps(result["machine"]))
    print("| what | figure |\n|---|---|")

    def report(name: str, **figures: Any) -> None:
        result[name] = figures
        text = ", ".join(
            f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        print(f"| {name} | {text} |  {time.monotonic() - start:.0f} s", flush=True)
        if "out" in values:
            Path(values["out"]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    if "right" in parts:
        for seeds in (1, 4):
            for algo in ("td3", "ddpg"):
                report(
                    f"{algo}, {seeds} seeds, float64: GPU against CPU",
                    largest_difference=against_the_cpu(algo, seeds, keys),
                )
        report("graphs against single operations", largest_difference=against_single_operations(keys))
        report("resumed against not interrupted", equal=resumed_is_equal(keys))
    if "updates" in parts:
        for seeds in SEEDS:
            report(f"updates, {seeds} seeds", **update_speed(seeds, keys))
        report("updates by single operations, 1 seed", **update_speed(1, keys, captured=False))
    if "steps" in parts:
        report("steps by single operations, 1 seed", **step_speed(1, 1_500, keys, captured=False))
        for seeds, steps in ((1, 12_000), (16, 4_000), (64, 2_500)):
            report(f"steps, {seeds} seeds", **step_speed(seeds, steps, keys))
    if "training" in parts:
        left = seconds - (time.monotonic() - start) - 15
        report("td3_paper, ten seeds", **train_ten(left, keys))


def machine() -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            "?",
        ),
        "date": time.strftime("%Y-%m-%d"),
    }


def new_learner(overrides: list[str], device: str, *, captured: bool) -> Any:
    """A learner for HalfCheetah-v4, with some thousand random transitions stored."""
    from dpg_cli import config
    from dpg_cli.cli import build
    from dpg_cli.precision import choose_products

    checked = config.validate(config.compose([*CHEETAH, "total_steps=20_000", "buffer_size=2_000", *overrides]))
    choose_products(torch.device(device))
    algorithm = build.new_algorithm(checked, OBS_DIM, ACTION_DIM, torch.device(device))
    learner = build.new_learner(checked, algorithm, OBS_DIM, ACTION_DIM, captured=captured)
    if captured:
        learner.prepare()
    for row in transitions(checked.num_seeds, 500):
        more(learner, 0, row)
    return learner


def transitions(seeds: int, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Random transitions of one environment for each seed."""
    g = np.random.default_rng(0)
    for _ in range(count):
        obs, next_obs = g.normal(size=(2, seeds, 1, OBS_DIM)).astype(np.float32)
        action, reward = g.uniform(-1, 1, (seeds, 1, ACTION_DIM)), g.normal(size=(seeds, 1))
        yield obs, action, reward, next_obs, g.random((seeds, 1)) < 0.1


def more(learner: Any, updates: int, row: tuple[np.ndarray, ...]) -> None:
    """Store one more transition and make updates."""
    learner.learn(*row, observed=row[0], updates=updates, acts_next=False)


def largest_parameter_difference(a: Any, b: Any) -> float:
    names = ("actor", "critic", "target_actor", "target_critic")
    return max(float((getattr(a, n).flat.cpu() - getattr(b, n).flat.cpu()).abs().max()) for n in names)


def against_the_cpu(algo: str, seeds: int, keys: list[str]) -> float:
    """200 updates from the same transitions, choices of batches and noise."""
    from dpg_cli.learner import AHEAD, follow
    from dpg_cli.replay import DeviceReplay, in_a_row

    overrides = [f"algo={algo}", f"num_seeds={seeds}", "precision=float64", "algo.batch_size=64", *keys]
    gpu = new_learner(overrides, "cuda", captured=True)
    cpu = new_learner(overrides, "cpu", captured=False).algorithm
    streams = [torch.Generator() for _ in range(seeds)]
    replay = DeviceReplay(2_000, OBS_DIM, ACTION_DIM, streams, "cpu", torch.float64)
    rows = list(transitions(seeds, 500))
    for row in rows:
        replay.insert(torch.from_numpy(np.concatenate(in_a_row(*row), axis=-1)))
    for done in range(0, 200, AHEAD):
        count = min(AHEAD, 200 - done)
        more(gpu, count, rows[0])
        replay.insert(torch.from_numpy(np.concatenate(in_a_row(*rows[0]), axis=-1)))
        numbers, normals = gpu.drawn()
        follow(cpu, replay, numbers[:, :count], normals[:, :count])
    return largest_parameter_difference(gpu.algorithm, cpu)


def against_single_operations(keys: list[str]) -> float:
    """100 updates in float32 by graphs, and by the same functions without any."""
    from dpg_cli import learner as learners

    overrides = ["num_seeds=2", *keys]
    graphs = new_learner(overrides, "cuda", captured=True)
    capture = learners.capture
    learners.capture = lambda function, *_: function
    try:
        with torch.no_grad():
            single = new_learner(["num_seeds=2"], "cuda", captured=True)
            row = next(transitions(2, 1))
            more(single, 100, row)
    finally:
        learners.capture = capture
    more(graphs, 100, row)
    return largest_parameter_difference(graphs.algorithm, single.algorithm)


def dpg_train(folder: Path, *arguments: str) -> None:
    quiet = [sys.executable, "-c", "from dpg_cli.cli.train import main; main()"]
    done = subprocess.run(
        [*quiet, *arguments, *([f"hydra.run.dir={folder}"] if folder else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dpg-train {' '.join(arguments)}: {done.stderr[-2000:]}")


def resumed_is_equal(keys: list[str]) -> bool:
    """A training on the GPU that stops at step 1,210 and is resumed, by its evaluations."""
    few = [
        *CHEETAH,
        "device=cuda",
        "random_steps=300",
        "eval.every=600",
        "eval.episodes=2",
        "checkpoint.every=605",
        "num_seeds=2",
        *keys,
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        dpg_train(whole, *few, "total_steps=2_000")
        dpg_train(parts, *few, "total_steps=1_210")
        dpg_train(Path(), f"resume={parts}", "total_steps=2_000") if False else resume(parts)
        names = [f"seed_{seed}/evaluations.jsonl" for seed in range(2)]
        return all(
            (whole / n).read_bytes().splitlines()[-1] == (parts / n).read_bytes().splitlines()[-1] for n in names
        )


def resume(folder: Path) -> None:
    quiet = [sys.executable, "-c", "from dpg_cli.cli.train import main; main()"]
    done = subprocess.run(
        [*quiet, f"resume={folder}", "total_steps=2_000"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def update_speed(seeds: int, keys: list[str], *, captured: bool = True) -> dict[str, float]:
    """Median time of an update, storing and staging left out; and the share of it in kernels."""
    start = time.perf_counter()
    learner = new_learner([f"num_seeds={seeds}", *keys], "cuda", captured=captured)
    prepared = time.perf_counter() - start
    row = next(transitions(seeds, 1))
    batch = 200 if captured else 20

    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        more(learner, batch, row)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / batch

    once()
    seconds = statistics.median(once() for _ in range(7))
    figures = {"updates_per_second": 1 / seconds, "seed_updates_per_second": seeds / seconds, "prepared_in_s": prepared}
    if captured:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            once()
        events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.device_time_total for event in events) / 1e6
        figures |= {
            "kernels_per_update": len(events) / batch,
            "us_in_kernels": busy / batch * 1e6,
            "share_in_kernels": busy / batch / seconds,
        }
        by_name: dict[str, list[float]] = {}
        for event in events:
            by_name.setdefault(event.name, []).append(event.device_time_total)
        top = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:12]
        for name, times in top:
            print(f"    {sum(times) / batch:8.1f} us {len(times) / batch:6.2f} x {name[:110]}", file=sys.stderr)
    return figures


def step_speed(seeds: int, steps: int, keys: list[str], *, captured: bool = True) -> dict[str, float]:
    """Training steps a second, evaluations and checkpoints excluded, from the run's own records after the first."""
    from dpg_cli.cli import build

    new = build.new_learner
    if not captured:
        build.new_learner = lambda *args, captured: new(*args, captured=False)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "run")
            every = max(250, steps // 10)
            few = [
                "random_steps=500",
                "learning_starts=500",
                f"total_steps={steps}",
                "eval.every=1e6",
                "eval.episodes=1",
                f"log.every={every}",
            ]
            start = time.perf_counter()
            run([*CHEETAH, "device=cuda", f"num_seeds={seeds}", "buffer_size=100_000", *few, *keys], folder)
            wall = time.perf_counter() - start
            member = folder if seeds == 1 else folder / "seed_0"
            records = [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]
            speeds = [
                r["perf/steps_per_second"] for r in records if "perf/steps_per_second" in r and r["step"] > 500 + every
            ]
            median = statistics.median(speeds)
            for line in (folder / "train.log").read_text().splitlines():
                if "stepped" in line or "threads" in line:
                    print("   ", line[-160:], file=sys.stderr)
            return {"steps_per_second": median, "seed_steps_per_second": seeds * median, "wall_s": wall}
    finally:
        build.new_learner = new


def run(overrides: list[str], folder: Path) -> Any:
    """A training in this process."""
    from dpg_cli import config
    from dpg_cli.cli import job

    checked = config.validate(config.compose(overrides))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump(checked))
    with job._logging_to(folder / "train.log"), contextlib.redirect_stdout(io.StringIO()):
        import logging

        logging.root.setLevel(logging.INFO)
        result = job.run(checked, folder, ["gpu.py"])
    if result.error:
        raise RuntimeError(result.error + (folder / "train.log").read_text()[-3000:])
    return result


def train_ten(seconds: float, keys: list[str]) -> dict[str, Any]:
    """As many steps as fit; the mean and spread over seeds at the last evaluation."""
    raise NotImplementedError


if __name__ == "__main__":
    main()
