"""Checkpoints: whole or not there, checked when read, and the policy in them acts as the one that was saved."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dpg_cli.algorithms import ALGORITHMS
from dpg_cli.config import config_dir
from dpg_cli.errors import DiskError, UserError
from dpg_cli.networks import Numbers
from dpg_cli.storage import checkpoint
from dpg_cli.storage.atomic import Disk

OBS, ACTION = 4, 2
VERSIONS = {"python": "3.11.0", "torch": "2.6.0"}
WEIGHT = "layers.0.weight"
WRITERS = {}
FILES = ["manifest.json", "policy.safetensors", "state.json", "state.safetensors"]


def make_algorithm(name="ddpg", *, seeds=(0,), dtype=torch.float32, **changes):
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / "algo" / f"{name}.yaml"))
    values.pop("name")
    values.pop("defaults", None)
    values |= {"hidden_sizes": [8, 6]} | changes
    return ALGORITHMS[name](**values, obs_dim=OBS, action_dim=ACTION, seeds=seeds, numbers=Numbers("cpu", dtype, dtype))


def make_policy(seed=0):
    return make_algorithm(seeds=(seed,)).policy_state(0)


def observations(members=1, dtype=np.float32):
    return np.random.default_rng(0).normal(2.0, 3.0, size=(members, 16, OBS)).astype(dtype)


def writer(run, keep=2):
    """The one that writes a run's checkpoints."""
    run.mkdir(exist_ok=True)
    return WRITERS.setdefault(run, checkpoint.Checkpoints(run, VERSIONS, keep))


def put(run, step, policy, keep=2):
    state = {"replay": {"added": 0, "size": 0}}
    writer(run, keep).save(step, policy, state, np.empty((0, 3), np.float32), oldest=0)


def save(run, step, *, seed=0, keep=2):
    put(run, step, make_policy(seed), keep)


def save_best(run, step, *, seed=0):
    writer(run).save_best(step, make_policy(seed))


def load_policy(run, which, **arguments):
    """An algorithm with the policy of a checkpoint."""
    algorithm = make_algorithm(seeds=(99,), **arguments)
    algorithm.load_policy(checkpoint.policy_tensors(checkpoint.find(run, which))[0])
    return algorithm


def loaded_step(run, which):
    return checkpoint.policy_tensors(checkpoint.find(run, which))[1]


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def rejected(folder):
    with pytest.raises(UserError) as caught:
        checkpoint.policy_tensors(folder)
    assert str(folder) in str(caught.value)
    assert "damaged" in str(caught.value)


def full(descriptor):
    raise OSError(errno.ENOSPC, "no space left on device")


# --- writing ---


def test_the_folder_of_a_step(tmp_path):
    save(tmp_path, 50_000)
    assert names(tmp_path) == ["latest", "step_000050000"]
    folder = tmp_path / "checkpoints" / "step_000050000"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / "policy.safetensors").read_bytes()
    assert manifest["step"] == 50_000
    assert manifest["versions"] == VERSIONS
    assert set(manifest["files"]) == {*FILES} - {"manifest.json"}
    assert manifest["files"]["policy.safetensors"] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for step in (0, 5, 10, 90, 100):
        save(tmp_path, step, keep=keep)
        assert loaded_step(tmp_path, "latest") == step
    newest = [f"step_{step:09d}" for step in (0, 5, 10, 90, 100)][-keep:]
    assert names(tmp_path) == ["latest", *newest]


def test_one_best_is_kept_whatever_happens_to_the_others(tmp_path):
    save_best(tmp_path, 0)
    save_best(tmp_path, 5)
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert loaded_step(tmp_path, "best") == 5
    assert loaded_step(tmp_path, "latest") == 30
    assert names(tmp_path) == ["best", "best_000000005", "latest", "step_000000020", "step_000000030"]


def test_best_and_latest_may_be_of_one_step(tmp_path):
    save_best(tmp_path, 5, seed=1)
    save(tmp_path, 5, seed=1)
    save_best(tmp_path, 10, seed=2)
    assert loaded_step(tmp_path, "latest") == 5
    assert loaded_step(tmp_path, "best") == 10


def test_links_are_relative_and_move_with_the_run(tmp_path):
    run = tmp_path / "run"
    save(run, 5)
    save_best(run, 3)
    for name in ("latest", "best"):
        link = run / "checkpoints" / name
        assert link.is_symlink()
        assert os.sep not in os.readlink(link)
    moved = run.rename(tmp_path / "elsewhere")
    assert loaded_step(moved, "latest") == 5
    assert loaded_step(moved, "best") == 3


def test_latest_is_there_at_every_moment(tmp_path):
    save(tmp_path, 0)
    manifest = tmp_path / "checkpoints" / "latest" / "manifest.json"
    missing, done = [], threading.Event()

    def watch():
        while not done.is_set():
            # Twice: ext4 erases a replaced link, which a lookup that is under way then finds empty.
            if not manifest.exists() and not manifest.exists():
                missing.append(True)

    reader = threading.Thread(target=watch)
    reader.start()
    policy = make_policy()
    for step in range(1, 40):
        put(tmp_path, step, policy, keep=100)  # the reader may have found a link's target just before it goes
    done.set()
    reader.join()
    assert not missing


def test_a_write_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="no space"):
            save(tmp_path, 10)
    assert loaded_step(tmp_path, "latest") == 5
    with pytest.raises(UserError, match="10"):
        checkpoint.find(tmp_path, "10")


def test_a_save_that_failed_can_be_made_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="no space"):
            save(tmp_path, 10)
    save(tmp_path, 10)
    assert loaded_step(tmp_path, "latest") == 10


def test_a_crash_before_the_rename_leaves_nothing_to_find(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def crash(self, path, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 10)
    assert loaded_step(tmp_path, "latest") == 5
    with pytest.raises(UserError) as caught:
        checkpoint.find(tmp_path, "10")
    assert "there are latest, 5" in str(caught.value)


def test_a_step_written_twice_stays_whole(tmp_path):
    save(tmp_path, 5, seed=0)
    with contextlib.suppress(OSError):  # whether the second is rejected or takes the first one's place
        save(tmp_path, 5, seed=1)
    for which in ("latest", "5"):
        policy, step = checkpoint.policy_tensors(checkpoint.find(tmp_path, which))
        assert step == 5
        weight = policy[WEIGHT]
        assert any(torch.equal(weight, make_policy(seed)[WEIGHT]) for seed in (0, 1))


# --- going back ---


def test_the_best_of_an_evaluation_that_comes_again_is_removed(tmp_path):
    """As that at the end of a run that is made longer: it belongs to no step of the longer run."""
    save_best(tmp_path, 3)
    save(tmp_path, 10)
    save_best(tmp_path, 10)
    checkpoint.rewind(tmp_path, checkpoint.load(tmp_path, 10), Disk())
    assert loaded_step(tmp_path, "best") == 3
    assert names(tmp_path) == ["best", "best_000000003", "latest", "step_000000010"]


# --- finding ---


@pytest.mark.parametrize("left", ["a folder", "a text", "a link to another", "nothing"])
def test_best_and_latest_are_found_whatever_became_of_the_links(tmp_path, left):
    for step in (1, 2, 3):
        save_best(tmp_path, step)
        save(tmp_path, step + 1)
    for name in ("best", "latest"):
        link = tmp_path / "checkpoints" / name
        old = link.resolve().parent / link.readlink()
        link.unlink()
        if left == "a folder":
            shutil.copytree(old, link)
        elif left == "a text":
            link.write_text("step_000000001")
        elif left == "a link to another":
            link.symlink_to("step_000000003")
    assert loaded_step(tmp_path, "best") == 3
    assert loaded_step(tmp_path, "latest") == 4


def test_find_by_name_and_by_step(tmp_path):
    save_best(tmp_path, 3, seed=1)
    save(tmp_path, 5, seed=2)
    save(tmp_path, 10, seed=3)
    for which, seed in {"best": 1, "3": 1, "5": 2, "10": 3, "latest": 3, "000000005": 2}.items():
        policy, _ = checkpoint.policy_tensors(checkpoint.find(tmp_path, which))
        assert torch.equal(policy[WEIGHT], make_policy(seed)[WEIGHT])


@pytest.mark.parametrize(
    "which", ["7", "newest", "", "..", "-5", "5.0", "step_000000005", "../checkpoints/latest", "/"]
)
def test_another_is_refused_with_those_that_there_are(tmp_path, which):
    save_best(tmp_path, 3)
    save(tmp_path, 5)
    with pytest.raises(UserError) as caught:
        checkpoint.find(tmp_path, which)
    message = str(caught.value)
    assert f"checkpoint={which}" in message
    for known in ("best", "latest", "3", "5"):
        assert known in message


@pytest.mark.parametrize("which", ["best", "latest", "5"])
def test_a_run_without_checkpoints_has_none_to_find(tmp_path, which):
    with pytest.raises(UserError, match=f"checkpoint={which}"):
        checkpoint.find(tmp_path, which)


def test_a_link_to_what_is_gone_is_refused(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / "step_000000005").rename(tmp_path / "taken")
    with pytest.raises(UserError, match="checkpoint=latest"):
        checkpoint.find(tmp_path, "latest")


def test_what_else_lies_among_the_checkpoints_does_not_matter(tmp_path):
    save(tmp_path, 5)
    other = tmp_path / "checkpoints" / "my_copy"
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    assert loaded_step(tmp_path, "latest") == 5
    with pytest.raises(UserError, match="checkpoint=7"):
        checkpoint.find(tmp_path, "7")


# --- reading ---


@pytest.mark.parametrize("normalize_obs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_loaded_policy_acts_exactly_as_the_saved_one(tmp_path, name, dtype, normalize_obs):
    algorithm = make_algorithm(name, dtype=dtype, normalize_obs=normalize_obs)
    obs = observations()
    algorithm.observe(obs)
    put(tmp_path, 5, algorithm.policy_state(0), keep=1)
    loaded = load_policy(tmp_path, "5", name=name, dtype=dtype, normalize_obs=normalize_obs)
    action = loaded.act_to_evaluate(obs)
    np.testing.assert_array_equal(action, algorithm.act_to_evaluate(obs))
    other = make_algorithm(name, dtype=dtype, normalize_obs=False)
    assert np.array_equal(action, other.act_to_evaluate(obs)) is not normalize_obs


@pytest.mark.parametrize("normalize_obs", [False, True])
def test_a_member_is_saved_alone(tmp_path, normalize_obs):
    algorithm = make_algorithm(seeds=(3, 8), dtype=torch.float64, normalize_obs=normalize_obs)
    obs = observations(members=2, dtype=np.float64)
    algorithm.observe(obs)
    actions = algorithm.act(obs)
    for member in range(2):
        put(tmp_path / str(member), 5, algorithm.policy_state(member), keep=1)
        loaded = load_policy(tmp_path / str(member), "5", dtype=torch.float64, normalize_obs=normalize_obs)
        own = loaded.act(obs[member : member + 1])[0]
        np.testing.assert_allclose(own, actions[member], rtol=1e-12, atol=1e-14)


def test_a_saved_policy_does_not_learn_on(tmp_path):
    algorithm = make_algorithm(normalize_obs=True)
    algorithm.observe(observations())
    before = algorithm.act(observations())
    state = algorithm.policy_state(0)
    put(tmp_path, 5, state, keep=1)
    with torch.no_grad():
        algorithm.actor.flat.add_(1.0)
    algorithm.observe(observations() * 7)
    np.testing.assert_array_equal(load_policy(tmp_path, "5", normalize_obs=True).act(observations()), before)


@pytest.mark.parametrize("file", ["manifest.json", "policy.safetensors"])
def test_a_missing_file_is_refused(tmp_path, file):
    save(tmp_path, 5)
    folder = checkpoint.find(tmp_path, "5")
    (folder / file).unlink()
    rejected(folder)


def test_a_missing_folder_is_refused(tmp_path):
    rejected(tmp_path / "step_000000005")


@pytest.mark.parametrize("file", ["manifest.json", "policy.safetensors"])
@pytest.mark.parametrize("length", [0, 1, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, file, length):
    save(tmp_path, 5)
    folder = checkpoint.find(tmp_path, "5")
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(length * len(data)) if length == 0.5 else length])
    rejected(folder)


def test_one_flipped_bit_is_refused(tmp_path):
    save(tmp_path, 5)
    folder = checkpoint.find(tmp_path, "5")
    good = (folder / "policy.safetensors").read_bytes()
    for place in (0, 8, 20, len(good) // 2, len(good) - 1):
        data = bytearray(good)
        data[place] ^= 1 << 3
        (folder / "policy.safetensors").write_bytes(data)
        rejected(folder)


def test_a_file_that_grew_is_refused(tmp_path):
    save(tmp_path, 5)
    folder = checkpoint.find(tmp_path, "5")
    with (folder / "policy.safetensors").open("ab") as file:
        file.write(b"\0")
    rejected(folder)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"step": 5, "files": {}}', "not json", "\0\0"])
def test_a_manifest_of_something_else_is_refused(tmp_path, text):
    save(tmp_path, 5)
    folder = checkpoint.find(tmp_path, "5")
    (folder / "manifest.json").write_text(text)
    rejected(folder)


@pytest.mark.parametrize("which", ["nothing", "other names", "a layer too few", "wrong shapes"])
def test_a_sound_file_that_is_no_policy_is_refused(tmp_path, which):
    policy = make_policy()
    wrong = {
        "nothing": {},
        "other names": {"weights": torch.zeros(3)},
        "a layer too few": {name: tensor for name, tensor in policy.items() if "layers.1" not in name},
        "wrong shapes": policy | {"layers.1.bias": torch.zeros(1, 1, 99)},
    }[which]
    put(tmp_path, 5, wrong, keep=1)
    with pytest.raises(ValueError, match="expected tensors"):
        load_policy(tmp_path, "5")


def test_a_pickle_is_never_opened(tmp_path):
    save(tmp_path, 5)
    folder = checkpoint.find(tmp_path, "5")
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(opened),)

    torch.save({"policy": Trap()}, folder / "policy.safetensors")
    data = (folder / "policy.safetensors").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["policy.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rejected(folder)
    assert not opened.exists()


# --- the algorithm alone, for a new run ---


def test_the_newest_whole_state_of_an_algorithm_needs_no_replay(tmp_path):
    state = {"algorithm": {"updates": 1}, "replay": {"added": 1, "size": 1}}
    for step in (10, 20):
        writer(tmp_path, keep=9).save(step, make_policy(), state, np.ones((int(step == 10), 3), np.float32), oldest=0)
    for shard in (tmp_path / "replay").iterdir():
        shard.unlink()
    assert checkpoint.newest_algorithm(tmp_path, 10**6) == (20, {"updates": 1}, [])
    with pytest.raises(UserError, match="allowed"):
        checkpoint.newest_algorithm(tmp_path, 10)
    (tmp_path / "checkpoints" / "step_000000020" / "state.json").write_text("{}")
    step, _, problems = checkpoint.newest_algorithm(tmp_path, 10**6)
    assert step == 10
    assert len(problems) == 1
    assert "step_000000020: damaged checkpoint" in problems[0]


def test_the_policy_of_the_best_evaluation_is_no_state_of_an_algorithm(tmp_path):
    save_best(tmp_path, 10)
    with pytest.raises(UserError, match="lacks the critics"):
        checkpoint.newest_algorithm(tmp_path, 10**6)


def test_a_second_checkpoint_of_a_step_replaces_the_first_only_once_it_is_written(tmp_path):
    run = tmp_path / "run"
    save(run, 5, seed=0, keep=1)

    class Failing(Disk):
        def rename(self, path, target):
            if path.name == f".step_000000005.{os.getpid()}":
                raise OSError(errno.EIO, "Input/output error", str(target))
            super().rename(path, target)

    own = checkpoint.Checkpoints(run, VERSIONS, 1, Failing())
    state = {"replay": {"added": 0, "size": 0}}
    with pytest.raises(DiskError, match="the previous one is intact"):
        own.save(5, make_policy(1), state, np.empty((0, 3), np.float32), oldest=0)
    stored = checkpoint.policy_tensors(checkpoint.find(run, "latest"))[0]
    assert torch.equal(stored[WEIGHT], make_policy(0)[WEIGHT])
    save(run, 5, seed=1, keep=1)
    stored = checkpoint.policy_tensors(checkpoint.find(run, "latest"))[0]
    assert torch.equal(stored[WEIGHT], make_policy(1)[WEIGHT])
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step_000000005"]
