"""The pool of processes, with tiny programs in place of the jobs."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dpg_cli.errors import DiskError
from dpg_cli.sweeps import local
from dpg_cli.sweeps.local import Pool, Worker
from dpg_cli.sweeps.process import in_session

# What a job does: sends its pid, then runs its `code`, for which `say` sends a message and `attempt` counts its starts.
JOB = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
reports, lifeline = int(sys.argv[1]), int(sys.argv[2])
document = json.loads(sys.stdin.buffer.read() or "null")
if document is None: sys.exit()
def say(kind, **values): os.write(reports, (json.dumps({"kind": kind, **values}) + "\\n").encode())
def result(error=None, exit_code=0): say("result", error=error, exit_code=exit_code, score=1.0)
folder = Path(document["folder"])
folder.mkdir(exist_ok=True)
attempt = len(list(folder.iterdir()))
(folder / str(attempt)).write_text(str(os.getpid()))
say("started", pid=os.getpid())
exec(document["code"])
"""
DONE = "result()"
SLEEP = "time.sleep(1000)"
STOPS = """
def stop(*_):
    result(exit_code=143)
    os._exit(143)
signal.signal(signal.SIGTERM, stop)
say("ready")
time.sleep(1000)
"""


class Seen:
    """The events of a pool."""

    def __init__(self):
        self.started_jobs, self.messages, self.again_reasons, self.ends = [], [], [], {}
        self.most, self.running = 0, set()

    def started(self, number):
        self.started_jobs.append(number)
        self.running.add(number)
        self.most = max(self.most, len(self.running))

    def said(self, number, message):
        self.messages.append((number, message["kind"]))

    def again(self, number, reason):
        self.again_reasons.append((number, reason))

    def ended(self, number, state, reason, result):
        assert number not in self.ends
        self.running.discard(number)
        self.ends[number] = (state, reason)

    def passed(self):
        pass


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def run(tmp_path, seen):
    """Run jobs, given as code, and check that no process is left."""

    def run(codes, workers=2, stop=lambda: False, **keys):
        def prepare(number, worker):
            if isinstance(codes[number], Exception):
                raise codes[number]
            cores = list(worker.cores or [])
            return {"code": codes[number], "folder": str(tmp_path / str(number)), "cores": cores, "gpus": worker.gpus}

        places = workers if isinstance(workers, list) else [Worker()] * workers
        try:
            with Pool([sys.executable, "-c", JOB], places, seen, stop, **keys) as pool:
                pool.run(range(len(codes)), prepare)
        finally:
            assert_none_left(tmp_path)
        return pool

    return run


def pids(folder):
    return [int(path.read_text()) for path in folder.glob("*/*") if path.name.isdigit() and path.read_text()]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_none_left(folder, seconds=0.5):
    end = time.monotonic() + seconds
    while left := [pid for pid in pids(folder) if alive(pid) or any(map(alive, in_session(pid)))]:
        assert time.monotonic() < end, left
        time.sleep(0.02)


def test_each_job_has_a_process_of_its_own_and_no_more_run_than_there_are_workers(run, seen, tmp_path):
    run(["time.sleep(0.2); result()"] * 5, workers=2)
    assert seen.started_jobs == [0, 1, 2, 3, 4]
    assert seen.ends == dict.fromkeys(range(5), ("done", None))
    assert seen.most == 2
    assert len(set(pids(tmp_path))) == 5


def test_a_job_that_fails_is_not_started_again_and_the_others_run(run, seen):
    run(["result(error='broken', exit_code=1)", DONE, "sys.exit(3)" + "  # after no result"], workers=1, retries=0)
    assert seen.ends[0] == ("failed", "broken")
    assert seen.ends[1] == ("done", None)
    assert seen.ends[2] == ("failed", "its process ended with 3 and no result")
    assert seen.again_reasons == []


def test_a_job_that_cannot_be_prepared_fails_alone(run, seen):
    run([ValueError("no\nfolder"), DONE, DiskError("x: no room")])
    assert seen.ends == {0: ("failed", "ValueError: no folder"), 1: ("done", None), 2: ("failed", "x: no room")}
    assert seen.started_jobs == [1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_killed_job_is_started_again_in_its_place(run, seen, number):
    run([f"attempt == 0 and os.kill(os.getpid(), {number:d}); result()", DONE], workers=1)
    assert seen.ends == {0: ("done", None), 1: ("done", None)}
    ((job, reason),) = seen.again_reasons
    assert (job, reason.partition(",")[0]) == (0, f"killed by {number.name}")
    assert ("out of memory; peak 0." in reason) == (number == signal.SIGKILL)


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_job_that_is_always_killed_fails_with_a_reason(run, seen, tmp_path, retries):
    run(["os.kill(os.getpid(), signal.SIGKILL)", DONE], retries=retries)
    state, reason = seen.ends[0]
    times = f"; started {retries + 1} times" if retries else ""
    assert state == "failed"
    assert reason.startswith("killed by SIGKILL, probably out of memory; peak 0.")
    assert reason.endswith(f"GB{times}")
    assert len(seen.again_reasons) == retries
    assert len(list((tmp_path / "0").iterdir())) == retries + 1


def test_a_result_counts_even_if_the_process_crashes_at_its_end(run, seen):
    run(["result(); os.kill(os.getpid(), signal.SIGSEGV)"])
    assert seen.ends == {0: ("done", None)}


def test_a_job_that_does_not_end_after_its_result_is_killed(run, seen, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE", 0.2)
    run([f"result(); {SLEEP}"])
    assert seen.ends == {0: ("done", None)}


def test_a_job_that_another_process_stops_is_pending_and_is_not_started_again(run, seen):
    run([f"subprocess.Popen(['sh', '-c', f'sleep 0.3; kill {{os.getpid()}}'])\n{STOPS}", DONE], workers=1)
    assert seen.ends == {0: ("pending", "stopped by SIGTERM"), 1: ("done", None)}


def test_processes_that_a_job_leaves_behind_are_killed(run, seen, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "LEFTOVERS", 0.2)
    child = "child = subprocess.Popen(['sleep', '1000'])\n(folder / 'x').write_text(str(child.pid))\n"
    run([child + DONE, child + "attempt == 0 and os.kill(os.getpid(), signal.SIGKILL); result()"])
    assert seen.ends == {0: ("done", None), 1: ("done", None)}
    for number in "01":
        assert not alive(int((tmp_path / number / "x").read_text()))


def test_a_stop_lets_every_job_write_a_checkpoint_and_starts_no_more(run, seen):
    pool = run([STOPS, STOPS, DONE], stop=lambda: len([1 for _, kind in seen.messages if kind == "ready"]) == 2)
    assert seen.ends == {0: ("pending", None), 1: ("pending", None)}
    assert pool.stopping


def test_a_job_that_does_not_stop_is_killed_and_fails(run, seen, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE", 0.3)
    hangs = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); say('ready'); {SLEEP}"
    run([hangs, DONE], stop=lambda: (0, "ready") in seen.messages)
    assert seen.ends[0] == ("failed", "did not stop within 0 s of the request, and was killed")


def test_a_job_that_is_stopped_before_it_handles_signals_is_pending(run, seen):
    run([f"say('ready'); {SLEEP}"], stop=lambda: (0, "ready") in seen.messages)
    assert seen.ends == {0: ("pending", None)}


def test_a_job_that_stops_already_gets_no_second_signal(run, seen):
    """Where a machine sends its signal to all processes, a second one would keep the job from its checkpoint."""
    stops = "say('stopping'); say('ready'); time.sleep(0.5); result(exit_code=143)"
    run([stops], stop=lambda: (0, "ready") in seen.messages)
    assert seen.ends == {0: ("pending", None)}


def test_a_job_that_is_killed_while_it_stops_is_pending(run, seen):
    run(["say('stopping'); os.kill(os.getpid(), signal.SIGBUS)", DONE], workers=1)
    assert seen.ends == {0: ("pending", "killed by SIGBUS while it stopped"), 1: ("done", None)}


def test_jobs_fail_where_no_process_can_be_started(run, seen, monkeypatch):
    def refuse(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Pool, "_new_process", refuse)
    run([DONE, DONE])
    reason = "BlockingIOError: [Errno 11] Resource temporarily unavailable"
    assert seen.ends == dict.fromkeys(range(2), ("failed", reason))


def test_fail_fast_stops_the_others_with_a_checkpoint(run, seen):
    fails = "time.sleep(0.5); result(error='broken', exit_code=1)"
    pool = run([STOPS, fails, DONE], fail_fast=True)
    assert seen.ends == {0: ("pending", None), 1: ("failed", "broken")}
    assert pool.stopping


def test_an_error_in_this_process_leaves_no_process(run, seen):
    def stop():
        if (0, "ready") in seen.messages:
            raise RuntimeError("of the main process")
        return False

    with pytest.raises(RuntimeError, match="of the main process"):
        run([STOPS, SLEEP, SLEEP], stop=stop)
    assert seen.ends == {0: ("pending", None), 1: ("pending", None)}


def test_the_next_job_has_an_interpreter_that_was_started_before(tmp_path, seen):
    """It says when it was started: before the job whose place it takes has ended."""
    program = JOB.replace("document = ", "import time; born = time.monotonic(); document = ", 1)
    code = "time.sleep(1.0); (folder / 'born').write_text(f'{born} {time.monotonic()}'); result()"
    with Pool([sys.executable, "-c", program], [Worker()], seen, lambda: False) as pool:
        pool.run(range(3), lambda number, worker: {"code": code, "folder": str(tmp_path / str(number))})
    times = [tuple(map(float, (tmp_path / str(number) / "born").read_text().split())) for number in range(3)]
    assert times[1][0] < times[0][1]
    assert times[2][0] < times[1][1]


def test_a_spare_that_was_killed_costs_no_attempt(run, seen):
    others = "[child for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()]"
    kill = f"import psutil\nwhile not (found := {others}): pass\nfound[0].kill()\n"
    run([kill + DONE, DONE], workers=1, retries=0)
    assert seen.ends == {0: ("done", None), 1: ("done", None)}


def test_an_interpreter_that_does_not_start_says_why(tmp_path, seen):
    with Pool([sys.executable, "-c", "import nothing_of_this_name"], [Worker()], seen, lambda: False) as pool:
        pool.run([0], lambda number, worker: {})
    state, reason = seen.ends[0]
    assert state == "failed"
    assert reason == (
        "its process ended with 1 and no result: ModuleNotFoundError: No module named 'nothing_of_this_name'; "
        "started 2 times"
    )


def test_workers_have_their_own_cores_and_gpus(run, seen, tmp_path):
    code = "(folder / 'x').write_text(f\"{document['cores']} {document['gpus']}\"); time.sleep(0.3); result()"
    run([code] * 4, workers=[Worker((0, 1), "0"), Worker((2, 3), "1")])
    assert Counter((tmp_path / str(number) / "x").read_text() for number in range(4)) == {
        "[0, 1] 0": 2,
        "[2, 3] 1": 2,
    }


def test_junk_among_the_messages_is_ignored(run, seen):
    run([r"os.write(reports, b'\xff{\n5\n[]\n{}\n'); result()"])
    assert seen.ends == {0: ("done", None)}


def test_many_messages_arrive_in_order(run, seen):
    run(["[say('number', n=n) for n in range(5000)]; result()"])
    assert len(seen.messages) == 5001


# --- the end of the main process ---

MAIN = """
import sys
from pathlib import Path
from dpg_cli.sweeps.local import Pool, Worker
class Quiet:
    def passed(self): pass
    started = said = again = ended = lambda self, *arguments: None
with Pool([sys.executable, "-c", sys.argv[2]], [Worker()] * 2, Quiet(), lambda: False) as pool:
    pool.run(range(4), lambda number, worker: {"code": sys.argv[3], "folder": sys.argv[1] + f"/{number}"})
"""
HELD = """
from dpg_cli.sweeps import lifeline as module
module.GRACE = 1.0
def stop(*_):
    (folder / "checkpoint").write_text("")
    {}
signal.signal(signal.SIGTERM, stop)
line = module.Lifeline(lifeline, lambda: os.kill(os.getpid(), signal.SIGTERM))
(folder / "x").write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
while True: time.sleep(1000)
"""


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("what_then", ["line.leave(); os._exit(143)", "pass"], ids=["stops", "hangs"])
def test_jobs_and_their_processes_end_after_the_main_process_is_killed(tmp_path, what_then):
    arguments = [sys.executable, "-c", MAIN, str(tmp_path), JOB, HELD.format(what_then)]
    main = subprocess.Popen(arguments, start_new_session=True)
    wait_for(lambda: len([path for path in tmp_path.glob("*/x") if path.read_text()]) == 2)
    main.kill()
    main.wait()
    wait_for(lambda: len(list(tmp_path.glob("*/checkpoint"))) == 2)
    assert_none_left(tmp_path, 5.0)
    for path in tmp_path.glob("*/x"):
        assert not alive(int(path.read_text()))
