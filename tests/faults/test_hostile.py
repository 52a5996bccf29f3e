"""A run folder from a stranger: nothing of it runs, nothing outside is touched, no secret shows, no memory is taken."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers Toy/Reach-v0, so that no attack needs a module to be imported
import yaml
from commands import SMALL
from policy_files import entries, rewrite
from safetensors.torch import load_file, save_file

from dpg_cli.cli import report
from dpg_cli.storage.checkpoint_folder import checksum
from dpg_cli.storage.shards import described

STEP = "checkpoints/step_000000060"
SECRET = "hunter2-secret"
MOST = 400 * 2**20  # bytes that a rejection may take: many times less than what every attack asks for
TERABYTE = 2**40


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# --- a small run, made once, and the place around its copy ---


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def place(train, made, tmp_path, monkeypatch):
    """A copy of the run in `run`, with one checkpoint to resume from, and `outside`, which must stay as it is."""
    if not made.exists():
        arguments = ["env=Toy/Reach-v0", *SMALL, "noise=ou", "checkpoint.keep=1", f"hydra.run.dir={made}"]
        assert train(*arguments)[0] == 0
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine\n" * 100)
    shutil.copytree(made, outside / "run", symlinks=True)
    monkeypatch.setenv("DPG_SECRET", SECRET)
    return tmp_path


def seal(folder):
    """Make a checkpoint's manifest fit its files, as whoever wrote them could."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        with (folder / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = "0" * 64 if size > 2**30 else hashlib.file_digest(file, "sha256").hexdigest()
        manifest["files"][name] = {"size": size, "sha256": digest}
    for path in (folder.parents[1] / "replay").glob("*.npy"):
        manifest["shards"][path.name] = described(path.read_bytes())
    seal_manifest(folder, manifest)


def seal_manifest(folder, manifest):
    manifest.pop("checksum", None)
    manifest["checksum"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# --- attacks: each takes the run folder, the folder outside, and the path that a payload would make ---


def config_text(change):
    def attack(run, outside, sentinel):
        path = run / "config.yaml"
        path.write_text(change(path.read_text(), outside, sentinel))

    return attack


def config_value(key, value):
    def attack(run, outside, sentinel):
        tree = yaml.safe_load((run / "config.yaml").read_text())
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[name] = value
        (run / "config.yaml").write_text(yaml.safe_dump(tree))

    return attack


def tagged(text, outside, sentinel):
    return text.replace("seed: 0", f"seed: !!python/object/apply:os.mkdir ['{sentinel}']")


def aliases(text, outside, sentinel):
    bomb = "b0: &b0 [x,x,x,x,x,x,x,x,x,x]\n"
    return bomb + "".join(f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 12)) + text


def module(run, outside, sentinel):
    (run.parent / "hostile_module.py").write_text(f"import os\nos.mkdir({str(sentinel)!r})\n")
    config_value("env.id", "hostile_module:Toy/Reach-v0")(run, outside, sentinel)


def sparse(name, seals=False):
    def attack(run, outside, sentinel):
        os.truncate(run / name, TERABYTE)
        if seals:
            seal(run / STEP)

    return attack


def linked(name):
    """A file or folder of the run is a link to one outside."""

    def attack(run, outside, sentinel):
        path = next(run.glob(name)) if "*" in name else run / name
        target = outside / "run" / path.relative_to(run)
        if not target.exists():
            target = outside / "file"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(target)

    return attack


def hard_linked(run, outside, sentinel):
    (run / "metrics.jsonl").unlink()
    os.link(outside / "run" / "metrics.jsonl", run / "metrics.jsonl")


def piped(name):
    def attack(run, outside, sentinel):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return attack


def linked_checkpoint(name):
    """`best` or `latest` leads to a sound policy outside."""

    def attack(run, outside, sentinel):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).symlink_to(next((outside / "run" / "checkpoints").glob("best_*")))

    return attack


def written(name, content):
    """A file of the checkpoint holds something else, and the manifest agrees."""

    def attack(run, outside, sentinel):
        folder = (run / "checkpoints" / "best").resolve() if name == "best policy" else run / STEP
        path = folder / ("policy.safetensors" if name == "best policy" else name)
        path.write_bytes(content(sentinel))
        if name == "best policy":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"]["policy.safetensors"] = described(path.read_bytes())
            seal_manifest(folder, manifest)
        else:
            seal(run / STEP)

    return attack


def shard(content):
    def attack(run, outside, sentinel):
        path = max((run / "replay").glob("*.npy"))
        path.write_bytes(content(sentinel, path))
        seal(run / STEP)

    return attack


def pickled(sentinel, *_):
    return pickle.dumps(Payload(sentinel))


def torch_pickled(sentinel):
    buffer = io.BytesIO()
    torch.save({"layers.0.weight": Payload(sentinel)}, buffer)
    return buffer.getvalue()


def of_objects(sentinel, path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(sentinel)] * 30, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zipped(sentinel, path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Payload(sentinel)], dtype=object))
    return buffer.getvalue()


def claiming_much(sentinel, path):
    data = path.read_bytes()
    assert b"(30,), }" in data
    return data.replace(b"(30,), }" + b" " * 11, b"(1000000000000,), }", 1)


def other_rows(sentinel, path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(30, np.dtype([("obs", np.float32, (200,))])))
    return buffer.getvalue()


def huge_tensors(sentinel):
    header = {"layers.0.weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, TERABYTE]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def no_chain(sentinel):
    path = sentinel.with_name("policy")
    layers = {f"layers.{i}.weight": torch.zeros(1, 1, 60_000) for i in range(2)}  # an actor of 29 GB from 500 kB
    save_file(layers | {f"layers.{i}.bias": torch.zeros(1, 1, 60_000) for i in range(2)}, path)
    data = path.read_bytes()
    path.unlink()
    return data


def not_finite(sentinel):
    path = sentinel.with_name("policy")
    sizes = [(2, 8), (8, 1)]
    weights = {f"layers.{i}.weight": torch.full((1, *size), float("nan")) for i, size in enumerate(sizes)}
    save_file(weights | {f"layers.{i}.bias": torch.zeros(1, 1, size[1]) for i, size in enumerate(sizes)}, path)
    data = path.read_bytes()
    path.unlink()
    return data


def described_as(*network):
    """The best policy describes its network otherwise."""
    return lambda run, *_: rewrite((run / "checkpoints" / "best").resolve(), entries(network=[FIRST, *network, LAST]))


def residuals(levels):
    """Residuals in each other, too many for a JSON encoder."""
    network = json.dumps([FIRST, "inner", LAST])
    inner = '{"type": "residual", "layers": [' * levels + '{"type": "relu"}' + "]}" * levels
    strings = {"network": network.replace('"inner"', inner)}
    return lambda run, *_: rewrite((run / "checkpoints" / "best").resolve(), lambda own: own | strings)


def tree(change):
    """`state.json` changed."""

    def attack(run, outside, sentinel):
        path = run / STEP / "state.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        seal(run / STEP)

    return attack


def attribute(layer, name, value):
    def change(state):
        state["environments"]["simulators"][0][layer][name] = value

    return tree(change)


def entry(*keys, value):
    def change(state):
        *parents, last = keys
        for key in parents:
            state = state[key]
        state[last] = value

    return tree(change)


def tensor(*keys, shape):
    """A tensor of the state has another shape."""

    def attack(run, outside, sentinel):
        node = json.loads((run / STEP / "state.json").read_text())
        for key in keys:
            node = node[key]
        path = run / STEP / "state.safetensors"
        tensors = load_file(path)
        (name,) = node.values()
        tensors[name] = torch.zeros(shape)
        save_file(tensors, path)
        seal(run / STEP)

    return attack


def manifest_entry(change):
    def attack(run, outside, sentinel):
        manifest = json.loads((run / STEP / "manifest.json").read_text())
        change(manifest, outside)
        seal_manifest(run / STEP, manifest)

    return attack


def shard_elsewhere(manifest, outside):
    manifest["shards"] = {f"../../outside/run/replay/{name}": about for name, about in manifest["shards"].items()}


def versions_with_escapes(manifest, outside):
    manifest["versions"]["torch"] = "\x1b]0;owned\x07"


def several(attack):
    """The run becomes the member of a parent."""

    def wrapped(run, outside, sentinel):
        member = run.with_name("member")
        run.rename(member)
        run.mkdir()
        text = (member / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("num_seeds: 1", "num_seeds: 2"))
        attack(run, outside, member)

    return wrapped


def members_elsewhere(run, outside, member):
    (run / "seed_0").symlink_to(outside / "run")
    member.rename(run / "seed_1")


CONFIGS = {
    "a python tag": config_text(tagged),
    "a target among the hyperparameters": config_value("algo._target_", "os.system"),
    "a target for the environment": config_value("env.kwargs._target_", "os.system"),
    "a hydra block": config_value("hydra", {"callbacks": {"x": {"_target_": "os.system"}}}),
    "an interpolation": config_value("env.id", "${oc.env:DPG_SECRET}"),
    "a module": module,
    "a file for the simulator": config_value("env.kwargs.xml_file", "/etc/hosts"),
    "aliases that unfold": config_text(aliases),
    "a list in a list in a list": config_text(lambda text, *_: f"deep: {'[' * 4_000}\n{text}"),
    "a number of 60,000 digits": config_text(lambda text, *_: text.replace("seed: 0", f"seed: 0x{'f' * 50_000}")),
    "escape sequences": config_value("env.id", "Toy/Reach\x1b]0;owned\x07\u202e-v0"),
    "a thousand million seeds": config_value("num_seeds", 10**9),
    "a thousand million environments": config_value("num_envs", 10**9),
    "a thousand million episodes": config_value("eval.episodes", 10**9),
    "more steps than there are numbers": config_value("total_steps", 10**300),
    "a config of a terabyte": sparse("config.yaml"),
    "a config that is a link": linked("config.yaml"),
    "a config that is a pipe": piped("config.yaml"),
}
FIRST, LAST = ({"type": "dense", "weight": f"layers.{i}.weight", "bias": f"layers.{i}.bias"} for i in range(2))
NORM = {"type": "layer_norm", "weight": "layers.0.bias", "bias": "layers.0.bias", "epsilon": 1e-6}
DESCRIPTIONS = {
    "a residual in a residual": residuals(2),
    "100,000 residuals in each other": residuals(100_000),
    "300,000 layers in residuals": described_as(*[{"type": "residual", "layers": [{"type": "relu"}] * 100_000}] * 3),
    "a residual of something else": described_as({"type": "residual", "layers": "\x1b]0;owned\x07"}),
    "a type with escape sequences": described_as({"type": "residual", "layers": [{"type": "\x1b]0;owned\x07"}]}),
    "a type of a megabyte": described_as({"type": "x" * 2**20}),
    "a layer_norm that divides by 0": described_as(NORM | {"epsilon": 1e-300}),
    "a layer_norm with an epsilon of 400 digits": described_as(NORM | {"epsilon": 10**400}),
    "a layer_norm of another size": described_as(NORM | {"weight": "layers.1.bias"}),
    "a layer_norm of C code": described_as(NORM | {"epsilon": '1.0f); system("true"'}),
}
POLICIES = {
    "a pickle as a policy": written("best policy", torch_pickled),
    "tensors of a terabyte": written("best policy", huge_tensors),
    "layers that do not chain": written("best policy", no_chain),
    "weights that are no numbers": written("best policy", not_finite),
    "checkpoints elsewhere": linked("checkpoints"),
}
STATES = {
    "huge networks": config_value("algo.hidden_sizes", [10**7, 10**7]),
    "networks of which one fits": config_value("algo.hidden_sizes", [20_000, 20_000, 20_000, 20_000, 20_000]),
    "a replay of a terabyte": lambda run, *_: [
        config_value(key, 10**9 - 1)(run, None, None) for key in ("buffer_size", "total_steps")
    ],
    "a pickle as a state": written("state.safetensors", torch_pickled),
    "a plain pickle as a state": written("state.safetensors", pickled),
    "tensors of a terabyte": written("state.safetensors", huge_tensors),
    "a state of a terabyte": sparse(f"{STEP}/state.safetensors", seals=True),
    "a tree of a terabyte": sparse(f"{STEP}/state.json", seals=True),
    "a shard of objects": shard(of_objects),
    "a pickle as a shard": shard(pickled),
    "a zip as a shard": shard(zipped),
    "a shard that claims a million millions": shard(claiming_much),
    "a shard of other rows": shard(other_rows),
    "a shard elsewhere": manifest_entry(shard_elsewhere),
    "a tree of 100,000 levels": written("state.json", lambda _: b"[" * 100_000 + b"]" * 100_000),
    "a method of the environment": attribute(-1, "step", 0),
    "a method of a wrapper": attribute(3, "reset", 0),
    "the environment inside of a wrapper": attribute(1, "env", 0),
    "a class": attribute(-1, "__class__", "dict"),
    "no generator": attribute(-1, "_np_random", "text"),
    "a space that is none": attribute(-1, "_np_random", {"space": [0]}),
    "an unknown kind": attribute(-1, "x", {"object": "os.system"}),
    "a generator that reads elsewhere": entry("random", "numpy", 2, value=10**6),
    "a network of another shape": tensor("algorithm", "critic", "layers.0.weight", shape=(1, 1)),
    "moments of another shape": tensor("algorithm", "actor_optimizer", "mean", 0, shape=(1, 1)),
    "an observation of another shape": tensor("environments", "obs", shape=(1,)),
    "files of negative length": entry("files", "metrics.jsonl", value=-5),
    "no lengths of files": entry("files", value={}),
    "evaluations of something else": entry("evaluations", value=[["a", "b"]]),
    "more transitions than there are": entry("replay", "size", value=10**12),
}
NETWORKS = {
    **{name: STATES[name] for name in STATES if "pickle" in name and "shard" not in name},
    **{name: STATES[name] for name in STATES if "terabyte" in name and "replay" not in name},
    **{name: STATES[name] for name in ("a tree of 100,000 levels", "a network of another shape")},
    **{f"{name} elsewhere": linked(name) for name in ("checkpoints", STEP, f"{STEP}/state.safetensors")},
    "a pipe": piped(f"{STEP}/manifest.json"),
}
LINKED = (
    "checkpoints",
    "replay",
    STEP,
    "metrics.jsonl",
    "evaluations.jsonl",
    "run.json",
    "train.log",
    ".lock",
    "events.*",
)
LINKS = {
    **{f"{name} is a link": linked(name) for name in (*LINKED, "events.*", ".run.json.1", ".latest.1")},
    **{f"{name} is a pipe": piped(name) for name in ("metrics.jsonl", ".lock", "run.json", f"{STEP}/manifest.json")},
    "a file with two names": hard_linked,
    "a seed elsewhere": several(members_elsewhere),
}
EXPORTED = {
    **{name: CONFIGS[name] for name in ("a python tag", "aliases that unfold", "a list in a list in a list")},
    **{name: CONFIGS[name] for name in CONFIGS if name.startswith(("a config ", "a number "))},
    **POLICIES,
    **DESCRIPTIONS,
    "a policy of a terabyte": sparse(f"{STEP}/policy.safetensors", seals=True),
    **{name: STATES[name] for name in STATES if name.startswith(("a shard of", "a shard that", "a pickle as a shard"))},
    "a zip as a shard": STATES["a zip as a shard"],
    "a shard of a terabyte": lambda run, *_: os.truncate(min((run / "replay").glob("*.npy")), TERABYTE),
    "a shard that is a link": linked("replay/*.npy"),
    "a shard that is a pipe": piped("replay/rows_000000000000_000000000030.npy"),
    "no replay, and a module": lambda run, *rest: [shutil.rmtree(run / "replay"), module(run, *rest)],
}
CURVES = {
    "curves elsewhere": linked("evaluations.jsonl"),
    "a pipe": piped("evaluations.jsonl"),
    "a line of a terabyte": sparse("evaluations.jsonl"),
    "no records": lambda run, *_: (run / "evaluations.jsonl").write_text("[]\n"),
    "no numbers": lambda run, *_: (run / "evaluations.jsonl").write_text('{"step": 0, "returns": ["a"]}\n'),
    "100,000 levels": lambda run, *_: (run / "evaluations.jsonl").write_text("[" * 100_000 + "\n"),
    "no evaluations": lambda run, *_: (run / "evaluations.jsonl").write_text(""),
    "a config of aliases": config_text(aliases),
    "a config with a tag": config_text(tagged),
    "metrics of a terabyte": sparse("metrics.jsonl"),
    "a huge step": lambda run, *_: (run / "evaluations.jsonl").write_text(f'{{"step": {10**400}, "returns": [1]}}\n'),
}


def rejected(place, attack, command):
    """The attack ends with exit code 2 and one line, and with nothing that it was for."""
    run, outside, sentinel = place / "run", place / "outside", place / "sentinel"
    attack(run, outside, sentinel)
    before = contents(outside)
    code, out, err = guarded(command)
    assert code == 2, err
    assert len([line for line in err.splitlines() if not line.startswith("warning: ")]) == 1
    assert "Traceback" not in err + out
    assert not {"\x1b", "\x07", "\u202e"} & set(err + out)
    assert len(err) < 5_000
    assert SECRET not in err + out
    assert not sentinel.exists()
    assert contents(outside) == before
    return err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def guarded(command):
    """Run a command that may neither wait forever nor take much memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    taken = int(status["VmSize"].split()[0]) * 1024
    handler = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(60)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 4 * MOST, before[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    start = peak()
    try:
        result = command()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert peak() - start < MOST
    return result


def peak():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("used", ["eval", "resume"])
def test_a_hostile_config(place, train, evaluate, name, used, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    run = (lambda: evaluate("run=run")) if used == "eval" else (lambda: train("resume=run", "total_steps=80"))
    rejected(place, CONFIGS[name], run)


@pytest.mark.parametrize("name", POLICIES)
def test_a_hostile_policy(place, evaluate, name):
    rejected(place, POLICIES[name], lambda: evaluate("run=run", "episodes=1"))


def test_a_best_checkpoint_elsewhere_is_not_read(place, evaluate):
    own = evaluate("run=run", "episodes=1")
    linked_checkpoint("best")(place / "run", place / "outside", place / "sentinel")
    for path in (place / "outside").rglob("policy.safetensors"):
        path.write_bytes(b"")
    assert guarded(lambda: evaluate("run=run", "episodes=1")) == own
    assert own[0] == 0


@pytest.mark.parametrize("name", EXPORTED)
def test_a_hostile_run_is_not_exported(place, export, name, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    which = "latest" if name == "a policy of a terabyte" else "best"
    rejected(place, EXPORTED[name], lambda: export("run=run", "format=pt2", f"checkpoint={which}"))
    assert not (place / "policy.pt2").exists()


def test_a_replay_elsewhere_is_not_read(place, export):
    linked("replay")(place / "run", place / "outside", place / "sentinel")
    for path in (place / "outside" / "run" / "replay").iterdir():
        path.write_bytes(b"")
    code, out, _ = guarded(lambda: export("run=run", "format=pt2"))
    assert (code, "of evaluation episodes" in out) == (0, True)


@pytest.mark.parametrize("name", STATES)
def test_a_hostile_state(place, train, name):
    longer = [] if name == "a replay of a terabyte" else ["total_steps=80"]
    rejected(place, STATES[name], lambda: train("resume=run", *longer))


@pytest.mark.parametrize("name", NETWORKS)
def test_hostile_networks(place, train, name):
    new = ["env=Toy/Reach-v0", *SMALL, "init=run", "hydra.run.dir=new"]
    rejected(place, NETWORKS[name], lambda: train(*new))
    assert not (place / "new").exists()


@pytest.mark.parametrize("name", LINKS)
def test_what_leads_elsewhere(place, train, name):
    rejected(place, LINKS[name], lambda: train("resume=run", "total_steps=80"))


@pytest.mark.parametrize("name", CURVES)
def test_hostile_curves(place, command, name):
    pytest.importorskip("matplotlib")
    rejected(place, CURVES[name], lambda: command(report.main, "run", "out=report"))
    assert not (place / "report").exists()


@pytest.mark.parametrize("name", ["escapes in the versions", "a hydra folder", "a run.json of something else"])
def test_what_is_harmless_goes_on(place, train, name):
    run = place / "run"
    if name == "escapes in the versions":
        manifest_entry(versions_with_escapes)(run, None, None)
    elif name == "a hydra folder":
        callbacks = {"callbacks": {"x": {"_target_": "os.mkdir", "path": str(place / "sentinel")}}}
        (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": callbacks}))
        (run / ".hydra" / "config.yaml").write_text(aliases("", None, None))
    else:
        (run / "run.json").write_text('{"status": ["\x1b]0;owned"], "resumed": 3, "command": "${oc.env:DPG_SECRET}"}')
    code, out, err = guarded(lambda: train("resume=run", "total_steps=80"))
    assert code == 0
    assert not {"\x1b", "\x07"} & set(err + out)
    assert not (place / "sentinel").exists()


def test_an_interpolation_stays_text_wherever_it_is_written_again(place, train):
    config_value("env.kwargs.bad", "${oc.env:DPG_SECRET}")(place / "run", None, None)
    code, out, err = train("resume=run", "total_steps=80", "trust=true")
    assert (code, err) == (0, "")
    assert SECRET not in out
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["env"]["kwargs"]["bad"] == "${oc.env:DPG_SECRET}"
    assert not [path for path in (place / "run").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_new_start_in_a_claimed_folder_reads_nothing_of_hydra_that_runs(place, train):
    """Several seeds, whose folders are made anew from what lies beside them."""
    several(lambda run, outside, member: shutil.copytree(member / ".hydra", run / ".hydra"))(
        place / "run", place / "outside", place / "sentinel"
    )
    (place / "run" / ".hydra" / "config.yaml").write_text(aliases("", None, None))
    assert guarded(lambda: train("resume=run"))[0] == 0
    assert list((place / "run").glob("seed_*/.hydra")) == []


def test_a_sound_copy_goes_on_and_is_evaluated(place, train, evaluate):
    """The control: without an attack nothing is rejected."""
    assert evaluate("run=run", "episodes=1")[0] == 0
    assert train("resume=run", "total_steps=80")[0] == 0
