"""The commands of a SLURM that starts every job at once, for tests: links to this file named sbatch, srun, squeue.

FAKE_SLURM names its folder: `jobs/NAME` holds the process id of each job.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["FAKE_SLURM"])


def sbatch(script):
    (ROOT / "jobs").mkdir(exist_ok=True)
    text = Path(script).read_text()
    array = re.search(r"--array=0-(\d+)", text)
    number = 1 + max((int(path.name.split("_")[0]) for path in (ROOT / "jobs").iterdir()), default=0)
    for task in range(int(array[1]) + 1) if array else [None]:
        own = {"SLURM_JOB_ID": str(number) if task is None else str(100 * number + task)}
        if task is not None:
            own |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        started = subprocess.Popen(
            ["bash", script],
            env=os.environ | own,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (ROOT / "jobs" / (str(number) if task is None else f"{number}_{task}")).write_text(str(started.pid))
    print(f"Submitted batch job {number}")


def srun(*arguments):
    streams = {}
    command = list(arguments)
    while command[0].startswith("-"):
        flag = command.pop(0)
        if flag in ("--output", "--error"):
            streams[flag] = command.pop(0)
    for path, descriptor in ((streams["--output"], 1), (streams["--error"], 2)):
        for pattern, name in (("%A", "SLURM_ARRAY_JOB_ID"), ("%a", "SLURM_ARRAY_TASK_ID"), ("%t", None)):
            path = path.replace(pattern, "0" if name is None else os.environ.get(name, ""))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.execvp(command[0], command)


def squeue(*_):
    for path in (ROOT / "jobs").glob("*"):
        if Path("/proc", path.read_text()).exists():
            print(path.name)


globals()[Path(sys.argv[0]).name](*sys.argv[1:])
