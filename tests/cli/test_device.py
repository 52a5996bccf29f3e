"""`device=auto`: measured, compared, decided once and kept. The GPU is a fake one: a CPU that captures."""

import json

import pytest
import torch
from test_trainer import composed

from dpg_cli.captured_learner import CapturedLearner
from dpg_cli.cli import device, job, memory
from dpg_cli.cli.device import CPU, choose, named_device
from dpg_cli.cli.learners import network_sizes, new_algorithm, new_learner
from dpg_cli.errors import UserError
from dpg_cli.learner import Learner
from dpg_cli.replay import Replay
from dpg_cli.seeding import CUDA_STATE, Purpose, restore_generator, torch_generator
from dpg_cli.storage import run_dir

FAKE = torch.device("cpu:0")
TOY = ["env=toy_envs:Toy/Reach-v0", "algo.hidden_sizes=[8]", "algo.batch_size=4", "total_steps=40", "random_steps=10"]
TOY += ["eval.every=20", "eval.episodes=1", "threads=1"]


@pytest.fixture
def speeds(monkeypatch):
    """A fake GPU, with speeds to set; every measurement is counted."""
    values = {Learner: 100.0, CapturedLearner: 500.0, "measured": 0}

    def updates_per_second(learner, row, at_once=None):
        values["measured"] += 1
        return values[type(learner)]

    monkeypatch.setattr(device, "_chosen", {})
    monkeypatch.setattr(device, "first_gpu", lambda: FAKE)
    monkeypatch.setattr(memory, "free_gpu_memory", lambda device: 2**40)
    monkeypatch.setattr(device, "updates_per_second", updates_per_second)
    return values


def forget(monkeypatch):
    """As in another process."""
    monkeypatch.setattr(device, "_chosen", {})


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("overrides", [["algo=td3", "num_seeds=3"], ["algo=ddpg", "algo.normalize_obs=true"]])
def test_the_faster_device_is_used(speeds, overrides, precision):
    config = composed(*overrides, f"precision={precision}", "num_envs=2")
    choice = choose(config, 2, 1)
    assert choice == (FAKE, True, {"cpu": 100.0, "cpu:0": 500.0}, None)
    assert choice.describe() == (
        "device=auto uses cpu:0: 100 on cpu and 500 on cpu:0 updates per second; device=cpu:0 pins it"
    )


def test_a_slow_gpu_is_left_alone(speeds):
    speeds[CapturedLearner] = 99.0
    choice = choose(composed(), 2, 1)
    assert choice == (CPU, False, {"cpu": 100.0, "cpu:0": 99.0}, None)
    assert choice.describe().endswith("device=cpu pins it")


def test_a_failing_gpu_is_left_alone_and_tried_again(speeds, monkeypatch):
    def fail(self):
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    with monkeypatch.context() as patch:
        patch.setattr(CapturedLearner, "prepare", fail)
        choice = choose(composed(), 2, 1)
    reason = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert choice == (CPU, False, {}, reason)
    assert choice.describe() == f"device=auto uses the CPU: {reason}"
    assert choose(composed(), 2, 1) == choice  # in this process
    forget(monkeypatch)
    assert choose(composed(), 2, 1).device == FAKE


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
def test_a_wrong_gpu_is_left_alone(speeds, monkeypatch, precision):
    learn = CapturedLearner.learn

    def learn_otherwise(self, *args, **kwargs):
        learn(self, *args, **kwargs)
        with torch.no_grad():
            if kwargs["updates"]:
                self.algorithm.critic.flat.add_(3e-3 * torch.sin(torch.arange(len(self.algorithm.critic.flat))))

    monkeypatch.setattr(CapturedLearner, "learn", learn_otherwise)
    choice = choose(composed(f"precision={precision}"), 2, 1)
    assert choice.device == CPU
    assert "its first 10 updates differ by" in choice.reason


def test_a_gpu_without_room_for_a_run_is_left_alone_by_that_run(speeds, monkeypatch):
    gpu = torch.device("meta")
    monkeypatch.setattr(device, "first_gpu", lambda: gpu)
    monkeypatch.setattr(device, "measure", lambda *_: device.faster(gpu, {"cpu": 100.0, "meta": 500.0}))
    monkeypatch.setattr(memory, "free_gpu_memory", lambda device: 3 * 2**30)
    assert choose(composed(), 2, 1).device == gpu
    choice = choose(composed("buffer_size=1e8", "total_steps=1e8"), 2, 1)
    assert choice.device == CPU
    assert "GiB of meta are free" in choice.reason
    forget(monkeypatch)
    assert choose(composed("buffer_size=1e8", "total_steps=1e8"), 2, 1) == choice
    assert choose(composed(), 2, 1).device == gpu


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: devices are busy"), AssertionError("not compiled")])
def test_a_gpu_that_does_not_start_is_left_alone(speeds, monkeypatch, error):
    def fail(gpu):
        raise error

    monkeypatch.setattr(device, "machine", fail)
    choice = choose(composed(), 2, 1)
    assert choice == (CPU, False, {}, f"{type(error).__name__}: {error}")


def test_a_configuration_is_measured_once_on_a_machine(speeds, monkeypatch):
    for _ in range(3):
        choose(composed(), 2, 1)
        forget(monkeypatch)
    choose(composed("seed=7", "total_steps=61", "noise=ou"), 2, 1)  # which change no update
    assert speeds["measured"] == 2
    choose(composed("num_seeds=3"), 2, 1)
    assert speeds["measured"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(device, "machine", lambda gpu: ["another"])
        choose(composed(), 2, 1)
    assert speeds["measured"] == 6


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 3}', "{"])
def test_a_damaged_cache_is_measured_again(speeds, monkeypatch, tmp_path, content):
    choose(composed(), 2, 1)
    (tmp_path / "cache/dpg-cli/devices.json").write_text(content)
    forget(monkeypatch)
    assert choose(composed(), 2, 1).device == FAKE
    assert speeds["measured"] == 4


@pytest.mark.parametrize("speed", ["null", '"x"', "[1]", "NaN", "-1.0", "0", "true"])
def test_a_cached_speed_that_is_none_is_measured_again(speeds, monkeypatch, tmp_path, speed):
    choose(composed(), 2, 1)
    path = tmp_path / "cache/dpg-cli/devices.json"
    path.write_text(path.read_text().replace("100.0", speed))
    forget(monkeypatch)
    assert choose(composed(), 2, 1).device == FAKE
    assert speeds["measured"] == 4


def test_a_cache_that_cannot_be_written_is_done_without(speeds, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("")
    assert choose(composed(), 2, 1).device == FAKE


def test_without_a_home_there_is_no_cache(speeds, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert choose(composed(), 2, 1).device == FAKE


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(device, "measure", None)
    choice = choose(composed(), 2, 1)
    assert choice == (CPU, False, {}, None)
    assert choice.describe() is None


def test_a_named_device_is_not_measured(speeds):
    assert choose(composed("device=cpu"), 2, 1) == (CPU, False, {}, None)
    assert speeds["measured"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_the_users_mistake():
    with pytest.raises(UserError, match=r"device=cuda: torch .* finds no GPU; use device=cpu or device=auto"):
        named_device("cuda")


def test_a_speed_is_that_of_updates(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(device, "SECONDS", 3.5)
    made = []
    monkeypatch.setattr(device, "learn", lambda learner, row, updates: made.append(updates))
    monkeypatch.setattr(device, "_finish", lambda learner: None)
    assert device.updates_per_second(None, None, 10, clock=lambda: next(now)) == pytest.approx(30 / 5)
    assert made == [10, 10, 10, 10]  # the first are a warm-up


def test_a_run_says_what_was_chosen_and_a_resumed_one_keeps_it(train, speeds, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    code, out, _ = train(*TOY, f"hydra.run.dir={folder}")
    assert code == 0
    assert "note: device=auto uses cpu:0: 100 on cpu and 500 on cpu:0 updates per second; device=cpu:0 pins it" in out
    expected = {"name": "cpu:0", "updates_per_second": {"cpu": 100.0, "cpu:0": 500.0}, "reason": None}
    assert json.loads((folder / "run.json").read_text())["device"] == expected
    assert "device=auto uses cpu:0" in (folder / "train.log").read_text()
    assert "device: auto" in (folder / "config.yaml").read_text()
    forget(monkeypatch)
    (tmp_path / "cache/dpg-cli/devices.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(job, "build", None)
        assert train(f"resume={folder}", "total_steps=60", "trust=true")[0] == 1  # which loses nothing
    code, out, _ = train(f"resume={folder}", "total_steps=60", "trust=true")
    assert (code, "device=auto" in out, speeds["measured"]) == (0, False, 2)
    assert json.loads((folder / "run.json").read_text())["device"] == expected


def test_a_resumed_run_keeps_its_device(train, speeds, tmp_path, monkeypatch):
    speeds[CapturedLearner] = 1.0
    folder = tmp_path / "run"
    assert train(*TOY, f"hydra.run.dir={folder}")[0] == 0
    speeds[CapturedLearner] = 500.0
    forget(monkeypatch)
    (tmp_path / "cache/dpg-cli/devices.json").unlink()
    code, out, _ = train(f"resume={folder}", "total_steps=60", "trust=true")
    assert (code, "device=auto" in out) == (0, False)
    assert json.loads((folder / "run.json").read_text())["device"]["name"] == "cpu"
    assert "device: auto" in (folder / "config.yaml").read_text()
    code, out, _ = train(f"resume={folder}", "total_steps=80", "device=auto", "trust=true")
    assert (code, "device=auto uses cpu:0" in out) == (0, True)


def test_who_moves_a_run_to_another_device_is_told_what_is_lost(train, tmp_path):
    folder = tmp_path / "run"
    assert train(*TOY, f"hydra.run.dir={folder}")[0] == 0
    content = json.loads((folder / "run.json").read_text())
    content["device"] = {"name": "cuda"}
    (folder / "run.json").write_text(json.dumps(content))
    code, _, err = train(f"resume={folder}", "total_steps=60", "device=cpu", "trust=true")
    assert (code, err) == (0, "warning: the resumed run is not the same bit for bit: device cuda -> cpu\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_from_a_gpu_is_not_resumed_elsewhere_without_a_word(train, tmp_path):
    folder = tmp_path / "run"
    assert train(*TOY, f"hydra.run.dir={folder}")[0] == 0
    content = json.loads((folder / "run.json").read_text())
    content["device"] = {"name": "cuda"}
    (folder / "run.json").write_text(json.dumps(content))
    code, _, err = train(f"resume={folder}", "total_steps=60", "trust=true")
    assert code == 2
    reason = f"the run was on cuda, and torch {torch.__version__} finds no GPU"
    assert err == f"dpg-train: {reason}; dpg-train resume=run device=cpu resumes it on the CPU\n"


@pytest.mark.parametrize("name", ["cuda; rm -rf", "meta", 3, None, ["cuda"]])
def test_only_a_devices_name_is_taken_from_a_run_folder(tmp_path, name):
    (tmp_path / "run.json").write_text(json.dumps({"device": {"name": name}}))
    assert run_dir.device(tmp_path) is None


def test_a_sweep_decides_once(train, speeds):
    assert train(*TOY, "-m", "seed=0,1,2")[0] == 0
    assert speeds["measured"] == 2


def test_a_gpu_that_runs_full_ends_the_run_with_its_last_checkpoint_whole(train, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    update = Learner.learn
    count = iter(range(1000))

    def run_full(self, *args, **kwargs):
        if next(count) == 35:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 MiB free.")
        update(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "learn", run_full)
    code, _, err = train(*TOY, "checkpoint.every=15", f"hydra.run.dir={folder}")
    assert code == 1
    message = "out of memory: OutOfMemoryError: CUDA out of memory; the checkpoint of step 30 is valid"
    assert err.splitlines() == [f"dpg-train: failed: {message} (log: {folder / 'train.log'})"]
    assert json.loads((folder / "run.json").read_text())["error"] == message


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling it"])
def test_other_words_for_a_full_gpu(train, monkeypatch, message):
    def run_full(self, *args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr(Learner, "learn", run_full)
    code, _, err = train(*TOY)
    assert code == 1
    assert f"failed: out of memory: RuntimeError: {message}; the checkpoint of step 0 is valid" in err


def test_a_gpu_that_runs_full_while_a_run_is_restored_is_no_fault_of_its_checkpoint(train, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    assert train(*TOY, f"hydra.run.dir={folder}")[0] == 0

    def run_full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Replay, "load_state", run_full)
    code, _, err = train(f"resume={folder}", "total_steps=60", "trust=true")
    assert code == 1
    assert "failed: out of memory: OutOfMemoryError: CUDA out of memory; the checkpoint of step 40 is valid" in err


def test_too_large_a_replay_is_refused_with_what_would_fit(monkeypatch):
    config = composed("buffer_size=1e6", "total_steps=1e6", "num_seeds=64")
    monkeypatch.setattr(memory, "free_gpu_memory", lambda device: 8 * 2**30)
    with pytest.raises(UserError) as refused:
        memory.check_memory(config, 17, 6, torch.device("cuda"))
    assert str(refused.value) == (
        "buffer_size=1000000: 1,000,000 transitions for 64 seeds take 10.0 GiB, and 7.0 GiB of cuda are free: "
        "buffer_size=664_000 would fit, or device=cpu"
    )
    monkeypatch.setattr(memory, "free_gpu_memory", lambda device: 1.2 * 2**30)
    networks = r"algo.hidden_sizes=.* are free: use smaller ones, or reduce num_seeds, or device=cpu"
    with pytest.raises(UserError, match=networks):
        memory.check_memory(composed("algo.hidden_sizes=[4000,4000]"), 17, 6, torch.device("cuda"))
    monkeypatch.setattr(memory, "free_gpu_memory", lambda device: 2**29)
    with pytest.raises(UserError, match=r"device=cuda: 0.5 GiB of its memory are free, and 1 GiB is needed in"):
        memory.check_memory(config, 17, 6, torch.device("cuda"))


def test_the_projection_of_d4pg_is_counted():
    one, two = (memory.update_bytes(composed("algo=d4pg", f"algo.num_atoms={n}"), 17, 6) for n in (100, 200))
    outputs = memory.LAYERS_KEPT * 100  # of the critic's last layer
    assert two - one == 4 * 4 * (200**2 - 100**2 + outputs)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["algo.hidden_sizes=[256,256]"], "algo.hidden_sizes=[256, 256]"),
        (["network=simba", "network.critic_size=7"], "network.critic_size=7"),
        (["network=layer_norm", "network.actor_sizes=[7]"], "network.actor_sizes=[7]"),
        (
            ["algo=td7", "algo.embedding_size=7", "algo.hidden_sizes=[7]"],
            "algo.hidden_sizes=[7], algo.embedding_size=7",
        ),
        (
            ["algo=td7", "algo.hidden_sizes=[256,256]"],
            "algo.hidden_sizes=[256, 256], algo.encoder_sizes=[256, 256], algo.embedding_size=256",
        ),
    ],
)
def test_the_sizes_that_were_changed_are_named(given, named):
    assert network_sizes(composed(*given)) == named


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_networks_are_counted_with_all_that_belongs_to_them(precision):
    config = composed("algo=td3", f"precision={precision}", "algo.hidden_sizes=[128,128]", "num_seeds=2")
    learner = new_learner(config, new_algorithm(config, 17, 6, CPU), 17, 6, captured=True)
    learner.prepare()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in learner.algorithm.static_tensors()
    }
    assert sum(storages.values()) <= memory.learner_bytes(config, 17, 6) * 1.01
    assert sum(storages.values()) > memory.learner_bytes(config, 17, 6) * 0.75


def test_a_state_of_another_kind_of_device_begins_a_new_stream():
    generator, same, later = (torch_generator(0, Purpose.REPLAY) for _ in range(3))
    on_a_gpu = torch.zeros(CUDA_STATE, dtype=torch.uint8)
    restore_generator(generator, on_a_gpu, 100)
    restore_generator(same, on_a_gpu, 100)
    restore_generator(later, on_a_gpu, 101)
    fresh = torch_generator(0, Purpose.REPLAY)
    draws = [torch.rand(3, generator=g).tolist() for g in (generator, same, later, fresh)]
    assert draws[0] == draws[1]
    assert draws[0] not in (draws[2], draws[3])
    with pytest.raises(RuntimeError):
        restore_generator(generator, torch.zeros(5, dtype=torch.uint8), 0)


def test_an_algorithm_takes_a_state_from_another_kind_of_device():
    config = composed("algo=td3")
    source, target = (new_algorithm(config, 2, 1, CPU) for _ in range(2))
    state = source.state(0) | {"random": torch.zeros(CUDA_STATE, dtype=torch.uint8), "updates": 7}
    target.load_state([state])
    assert target.updates == 7
