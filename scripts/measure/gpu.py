#!/usr/bin/env python
r"""Show whether training on a GPU is right, and how fast it is.

    python scripts/measure/gpu.py
    python scripts/measure/gpu.py parts=right,updates out=gpu.json
    python scripts/measure/gpu.py wheels=.whl seconds=480 out=gpu.json

The parts, all of them unless `parts=` names some:

    right     the GPU against the CPU in float64: 200 updates, 1 and 4 seeds; graphs against single operations;
              a run that was resumed against one that was not interrupted
    steps     training steps on HalfCheetah-v4 for 1, 16 and 64 seeds, and by single operations for 1
    updates   updates alone for 1, 4, 16 and 64 seeds
    kernels   the share of an update's time that is spent in kernels, by torch's profiler
    training  experiment=td3_paper on HalfCheetah-v4, ten seeds at once, for the time that is left of `seconds`

Speeds are shown without and with compile=true. The script prints a table, and writes everything to `out=` as JSON.

It runs from a bare checkout on a machine with torch and no network. Packages that are missing there can be carried
along as a folder of wheels, which `wheels=` names. Make it elsewhere, for the other machine's Python, such as 3.12:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 -d .whl \
        gymnasium mujoco mujoco-core hydra-core omegaconf pydantic pydantic_core annotated-types typing-inspection \
        typing_extensions glfw pyopengl farama-notifications
    pip wheel --no-deps -w .whl antlr4-python3-runtime==4.9.3

(Add numpy, rich, safetensors, tensorboard and cloudpickle where they are missing too.)
"""

import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("right", "steps", "updates", "kernels", "training")
KEYS = ("parts", "seconds", "wheels", "out", "compile")
ENV, OBS_DIM, ACTION_DIM = "env=HalfCheetah-v4", 17, 6
GPU = "cuda"
SEEDS = (1, 4, 16, 64)
COMPARED = 200  # updates
NORMALIZED = "algo.normalize_obs=true"
STEPS = {1: 10_000, 16: 5_000, 64: 2_500}  # of each training that is timed
RANDOM_STEPS = 500  # of those
PUBLISHED = {
    20_000: (476, 597),
    50_000: (3352, 851),
    100_000: (5514, 554),
    300_000: (7697, 727),
}  # by the author's code
RESERVE, SHORTEST = 20, 60  # seconds: for the end of the training, and that it must have
ROUNDING = 1e-9  # that float64 explains after `COMPARED` updates
MAIN = "from dpg_cli.cli.train import main; main()"


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if "wheels" in arguments:  # begin again, before anything has imported an older version
        os.execve(
            sys.executable, [sys.executable, __file__, *without_wheels()], os.environ | installed(arguments["wheels"])
        )
    sys.path.insert(0, str(ROOT))
    from dpg_cli.cli.arguments import parse, run_script

    run_script("gpu.py", lambda: measure(parse(sys.argv[1:], KEYS, ())))


def without_wheels() -> list[str]:
    return [argument for argument in sys.argv[1:] if not argument.startswith("wheels=")]


def installed(wheels: str) -> dict[str, str]:
    """The environment variables with which the packages in a folder of wheels can be imported."""
    site = tempfile.mkdtemp(prefix="site_")
    flags = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, *map(str, Path(wheels).glob("*.whl"))], check=True)
    return {"PYTHONPATH": os.pathsep.join([site, str(ROOT)])}


def measure(values: Mapping[str, str]) -> None:
    import torch

    from dpg_cli import config
    from dpg_cli.errors import UserError

    start = time.monotonic()
    parts = values.get("parts", ",".join(PARTS)).split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"parts={values['parts']}: no part {unknown.pop()}; choose from {', '.join(PARTS)}")
    try:
        Path(values.get("out", os.devnull)).open("ab").close()
    except OSError as error:
        raise UserError(f"out={values['out']}: {error.strerror}") from error
    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} finds no GPU")
    config.register()
    compiled = values.get("compile", "false,true").split(",")
    result: dict[str, Any] = {"machine": machine()}
    wrong: list[str] = []
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print("\n| | figures | at |\n|---|---|---|")

    def report(name: str, figures: Mapping[str, Any]) -> None:
        result[name] = figures
        shown = {key: value for key, value in figures.items() if not isinstance(value, dict)}
        text = ", ".join(f"{key} {v:,.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in shown.items())
        if figures.get("largest difference", 0.0) > (ROUNDING if "GPU against CPU" in name else 0.0):
            wrong.append(name)
        if figures.get("equal") is False:
            wrong.append(name)
        print(f"| {name} | {text} | {time.monotonic() - start:.0f} s |", flush=True)
        if "out" in values:
            Path(values["out"]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    if "right" in parts:
        for algo in ("td3", "ddpg"):
            for seeds in (1, 4):
                difference = against_the_cpu(algo, seeds)
                report(f"GPU against CPU, {algo}, seeds={seeds}", {"largest difference": difference})
        report("graphs against single operations", {"largest difference": against_single_operations()})
        report(
            "normalised observations: GPU against CPU", {"largest difference": against_the_cpu("ddpg", 2, NORMALIZED)}
        )
        report("a replay of 2.7e9 numbers against a small one", {"largest difference": large_replay(64, 1_000_000)})
        report("a state moved to the CPU and back", {"largest difference": moved()})
        report("resumed against uninterrupted", {"equal": resumed_is_equal()})
    if "steps" in parts:
        report("steps, seeds=1, single operations", step_speed(1, 1_500, captured=False))
        for seeds, steps in STEPS.items():
            for value in compiled:
                report(f"steps, seeds={seeds}, compile={value}", step_speed(seeds, steps, f"compile={value}"))
    if "updates" in parts:
        report("updates, seeds=1, single operations", update_speed(1, captured=False))
        for seeds in SEEDS:
            for value in compiled:
                report(f"updates, seeds={seeds}, compile={value}", update_speed(seeds, f"compile={value}"))
    if "kernels" in parts:
        if parts == ["kernels"]:
            for seeds in SEEDS:
                for value in compiled:
                    report(f"kernels, seeds={seeds}, compile={value}", in_kernels(seeds, f"compile={value}"))
        else:  # in a process of its own, since a profiler slows what comes after it
            command = [sys.executable, __file__, "parts=kernels", f"compile={','.join(compiled)}"]
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "kernels.json")
                subprocess.run([*command, f"out={out}"], check=True, stdout=subprocess.DEVNULL)
                for name, figures in json.loads(out.read_text()).items():
                    if name.startswith("kernels"):
                        report(name, figures)
    if "training" in parts:
        left = float(values.get("seconds", "480")) - (time.monotonic() - start) - RESERVE
        if left < SHORTEST:
            print(f"no time is left for the training: {left:.0f} s")
        else:
            report("training, td3_paper, ten seeds", train_ten(left, f"compile={compiled[-1]}"))
    if wrong:
        print(f"gpu.py: wrong: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


def machine() -> dict[str, Any]:
    import torch

    about = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "gpu": torch.cuda.get_device_name(),
        "cpu": next((line.partition(":")[2].strip() for line in about if line.startswith("model name")), "?"),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


# --- updates alone ---


def new_learner(device: str, *overrides: str, captured: bool) -> Any:
    """A learner for HalfCheetah-v4 with 500 random transitions."""
    import torch

    from dpg_cli import config
    from dpg_cli.cli import learners
    from dpg_cli.precision import choose_products

    checked = config.validate(config.compose([ENV, "total_steps=20_000", "buffer_size=2_000", *overrides]))
    choose_products(torch.device(device))
    algorithm = learners.new_algorithm(checked, OBS_DIM, ACTION_DIM, torch.device(device))
    learner = learners.new_learner(checked, algorithm, OBS_DIM, ACTION_DIM, captured=captured)
    learner.prepare()
    for row in transitions(checked.num_seeds):
        more(learner, 0, row)
    return learner


def transitions(seeds: int, count: int = 500) -> Iterator[list[Any]]:
    """Random transitions of one environment for each seed."""
    import numpy as np

    g = np.random.default_rng(0)
    for _ in range(count):
        obs, next_obs = g.normal(size=(2, seeds, 1, OBS_DIM)).astype(np.float32)
        action, reward = g.uniform(-1, 1, (seeds, 1, ACTION_DIM)), g.normal(size=(seeds, 1))
        yield [obs, action, reward, next_obs, *(g.random((2, seeds, 1)) < 0.1)]


def more(learner: Any, updates: int, row: list[Any]) -> None:
    """Store a transition and make updates."""
    from dpg_cli.replay import Step

    learner.learn(Step(*row), observed=row[0], updates=updates, acts_next=False)


def largest_difference(a: Any, b: Any) -> float:
    names = ("actor", "critic", "target_actor", "target_critic")
    flats = [(getattr(a, name).flat.detach().cpu(), getattr(b, name).flat.detach().cpu()) for name in names]
    return max(float((one - other).abs().max()) for one, other in flats)


def against_the_cpu(algo: str, seeds: int, *more_overrides: str) -> float:
    """`COMPARED` updates from the same transitions, batches and noise."""
    import numpy as np
    import torch

    from dpg_cli.captured_learner import AHEAD, follow
    from dpg_cli.replay import DeviceReplay, Step

    overrides = [f"algo={algo}", f"num_seeds={seeds}", "precision=float64", "algo.batch_size=64", *more_overrides]
    gpu = new_learner(GPU, *overrides, captured=True)
    cpu = new_learner("cpu", *overrides, captured=False).algorithm
    replay = DeviceReplay(
        2_000, OBS_DIM, ACTION_DIM, [torch.Generator()] * seeds, "cpu", torch.float64, discount=cpu.discount
    )

    def store_on_cpu(row: list[Any]) -> None:
        replay.insert(torch.from_numpy(np.concatenate(Step(*row).in_a_row(), axis=-1)).double())

    rows = list(transitions(seeds))
    for row in rows:
        store_on_cpu(row)
    for done in range(0, COMPARED, AHEAD):
        count = min(AHEAD, COMPARED - done)
        more(gpu, count, rows[0])
        store_on_cpu(rows[0])
        cpu.observe(rows[0][0])
        numbers, normals = gpu.drawn()
        follow(cpu, replay, numbers[:, :count], normals[:, :count])
    return largest_difference(gpu.algorithm, cpu)


def against_single_operations() -> float:
    """Half as many updates by graphs, and by the functions that were captured."""
    import torch

    from dpg_cli import capture as capture_module

    row = next(transitions(2))
    graphs = new_learner(GPU, "num_seeds=2", captured=True)
    more(graphs, COMPARED // 2, row)
    capture = capture_module.capture
    capture_module.capture = lambda function, *_: function
    try:
        with torch.no_grad():
            single = new_learner(GPU, "num_seeds=2", captured=True)
            more(single, COMPARED // 2, row)
    finally:
        capture_module.capture = capture
    return largest_difference(graphs.algorithm, single.algorithm)


def large_replay(seeds: int, capacity: int) -> float:
    """20 updates from a replay of more numbers than 32 bits can count, and from a small one with the same rows."""
    largest = f"buffer_size={capacity}", f"total_steps={capacity}"
    small, large = (new_learner(GPU, f"num_seeds={seeds}", *keys, captured=True) for keys in ((), largest))
    for learner in (small, large):
        more(learner, 20, next(transitions(seeds)))
    return largest_difference(small.algorithm, large.algorithm)


def moved() -> float:
    """Parameters after 50 updates on the GPU, and after their state was loaded on the CPU and on the GPU again."""
    there = new_learner(GPU, "num_seeds=2", captured=True)
    more(there, 50, next(transitions(2)))
    largest, last = 0.0, there.algorithm
    for device in ("cpu", GPU):
        other = new_learner(device, "num_seeds=2", captured=device == GPU).algorithm
        other.load_state([last.state(member) for member in range(2)])
        largest, last = max(largest, largest_difference(last, other)), other
    return largest


def update_speed(seeds: int, *overrides: str, captured: bool = True) -> dict[str, float]:
    """Median over seven rounds."""
    start = time.perf_counter()
    learner = new_learner(GPU, f"num_seeds={seeds}", *overrides, captured=captured)
    prepared = time.perf_counter() - start
    row, updates = next(transitions(seeds)), 200 if captured else 30
    seconds = statistics.median([timed(learner, updates, row) for _ in range(8)][1:])
    return {"updates/s": updates / seconds, "ms": 1e3 * seconds / updates, "prepared in s": prepared}


def timed(learner: Any, updates: int, row: list[Any]) -> float:
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    more(learner, updates, row)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_kernels(seeds: int, *overrides: str) -> dict[str, float]:
    """The share of the time of updates in which the GPU computes: against their time without the profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    learner = new_learner(GPU, f"num_seeds={seeds}", *overrides, captured=True)
    row, updates = next(transitions(seeds)), 200
    seconds = statistics.median([timed(learner, updates, row) for _ in range(8)][1:])
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        timed(learner, updates, row)
    kernels = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    busy = sum(event.device_time_total for event in kernels) / 1e6
    return {"share": busy / seconds, "kernels an update": len(kernels) / updates, "us in them": 1e6 * busy / updates}


# --- whole trainings ---


def step_speed(seeds: int, steps: int, *overrides: str, captured: bool = True) -> dict[str, float]:
    """Median of the run's own records after the first updates; evaluations and checkpoints are not counted."""
    from dpg_cli.cli import build

    every = steps // 10
    sizes = [f"num_seeds={seeds}", f"total_steps={steps}", "buffer_size=100_000", f"random_steps={RANDOM_STEPS}"]
    if seeds > 1:  # as a long run would choose
        sizes.append(f"env_processes={min(len(os.sched_getaffinity(0)) - 1, seeds)}")
    strides = ["eval.every=1e6", "eval.episodes=1", "checkpoint.every=1e6", f"log.every={every}"]
    original = build.new_learner
    if not captured:
        build.new_learner = lambda *args, captured: original(*args, captured=False)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "run")
            train(folder, *sizes, *strides, *overrides)
            records = lines((folder if seeds == 1 else folder / "seed_0") / "metrics.jsonl")
            log = [line.partition(" - ")[2] for line in (folder / "train.log").read_text().splitlines()]
    finally:
        build.new_learner = original
    speeds = [r["perf/steps_per_second"] for r in records if r["step"] > RANDOM_STEPS + every and "value/q_mean" in r]
    how = next((line for line in log if "environments" in line and "step" in line), "environments: one by one")
    print(f"  {how}", file=sys.stderr)
    return {"steps/s": statistics.median(speeds), "seed-steps/s": seeds * statistics.median(speeds)}


def train(folder: Path, *overrides: str) -> Any:
    """A training in this process."""
    from dpg_cli import config
    from dpg_cli.cli import folder as folders
    from dpg_cli.cli import job

    checked = config.validate(config.compose([ENV, f"device={GPU}", *overrides]))
    folder.mkdir()
    logging.root.setLevel(logging.INFO)
    with folders.logging_to(folder / "train.log"), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        result = job.run(checked, folder, sys.argv)
    if result.error is not None:
        raise RuntimeError(result.error)
    return result


def train_ten(seconds: float, *overrides: str) -> dict[str, Any]:
    """Ten seeds, stopped as a user would; the mean and deviation over seeds where the author published theirs."""
    import numpy as np

    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGTERM])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        timer.start()
        with contextlib.suppress(FileNotFoundError):
            train(folder, "experiment=td3_paper", "num_seeds=10", "checkpoint.every=1e8", *overrides)
        timer.cancel()
        curves = [lines(path) for path in sorted(folder.glob("seed_*/evaluations.jsonl"))]
        metrics = lines(folder / "seed_0" / "metrics.jsonl")
    means = {row[0]["step"]: [float(np.mean(seed["returns"])) for seed in row] for row in zip(*curves, strict=False)}
    last = max(means)
    found: dict[str, Any] = {"seeds": len(curves), "steps": metrics[-1]["step"], "seconds": round(seconds)}
    for step in sorted({last, *PUBLISHED} & means.keys()):
        beside = f" (author {PUBLISHED[step][0]} ± {PUBLISHED[step][1]})" if step in PUBLISHED else ""
        found[f"at {step:,}"] = f"{np.mean(means[step]):.0f} ± {np.std(means[step]):.0f}{beside}"
    speeds = [r["perf/steps_per_second"] for r in metrics if "value/q_mean" in r]
    return found | {
        "seed-steps/s": 10 * statistics.median(speeds),
        "evaluations": {str(k): v for k, v in means.items()},
    }


def resumed_is_equal() -> bool:
    """Whether a run that ended at step 1,210 and was resumed to 2,000 has the evaluations of one that went through."""
    few = [
        ENV,
        f"device={GPU}",
        "random_steps=300",
        "eval.every=600",
        "eval.episodes=2",
        "num_seeds=2",
        "env_threads=1",
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        command(*few, "total_steps=2_000", f"hydra.run.dir={whole}")
        command(*few, "total_steps=1_210", f"hydra.run.dir={parts}")
        shutil.copytree(parts, Path(folder, "moved"), symlinks=True)
        command(f"resume={parts}", "total_steps=2_000")
        command(f"resume={Path(folder, 'moved')}", "total_steps=1_300", "device=cpu")
        command(f"resume={Path(folder, 'moved')}", "total_steps=1_400", f"device={GPU}")
        ends = [[lines(run / f"seed_{seed}" / "evaluations.jsonl")[-2:] for seed in range(2)] for run in (whole, parts)]
        return ends[0] == ends[1]


def command(*arguments: str) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = [sys.executable, "-c", MAIN, *arguments]
    done = subprocess.run(run, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"dpg-train {' '.join(arguments)}: {done.stderr}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
