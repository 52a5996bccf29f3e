"""Exported files: they act as the policy, and other programs can use them as the documentation says."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import made_policies
import numpy as np
import pytest
from commands import SMALL, TOY
from gymnasium import spaces
from policy_files import RUNS, arguments_of, entries, rewrite

import dpg_cli
from dpg_cli import load_policy
from dpg_cli.errors import ExportError
from dpg_cli.export import FORMATS, c, export
from dpg_cli.export.box import box_in_float32
from dpg_cli.export.module import plain_module
from dpg_cli.export.verification import TOLERANCE
from dpg_cli.layers import Dense
from dpg_cli.storage import checkpoint

STEM = "robot"
needs_c = pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("g++") is None, reason="no C compiler")
RUNNABLE = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(any(importlib.util.find_spec(m) is None for m in chosen.modules), reason="no extra"),
            *([needs_c] if name == "c" else []),
        ],
    )
    for name, chosen in FORMATS.items()
]
onnx_only = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="no extra")


def files(folder):
    """Without the cache, which a library may begin."""
    return [path.name for path in folder.iterdir() if path.name != "cache"]


def observations(policy, count=50, scale=3.0):
    return np.random.default_rng(0).normal(0, scale, (count, policy.obs_dim)).astype(np.float32)


def exported(policy, name, folder, obs=None):
    path = folder / f"{STEM}{FORMATS[name].suffix}"
    metadata = {**policy.metadata, "run": "some/run"}
    return path, export(policy, FORMATS[name], metadata, observations(policy) if obs is None else obs, path)


@pytest.fixture
def toy(trained):
    return load_policy(trained(TOY, *SMALL))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_file_acts_as_the_policy(trained, tmp_path, name, run):
    if name == "onnx" and run in ("an action without axes", "float16 actions", "float64", "one layer"):
        pytest.skip("a second for each model, made from the module that pt2 tests")
    policy = load_policy(trained(*arguments_of(run)), "latest")
    path, difference = exported(policy, name, tmp_path)
    assert difference <= TOLERANCE
    assert [own.name for own in tmp_path.glob(f"*{STEM}*")] == [path.name]  # nothing temporary
    actions = FORMATS[name].run(path, observations(policy, scale=1e4), STEM)  # at the bounds
    assert actions.dtype == np.float32
    exact = actions.astype(np.float64)  # in which a bound such as 0.7 is below the nearest float
    box = policy.action_space
    assert (exact >= box.low.ravel()).all()
    assert (exact <= box.high.ravel()).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("network", made_policies.NETWORKS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_file_of_every_kind_of_layer_acts_as_the_policy(tmp_path, name, network, dtype):
    if name == "onnx" and dtype == np.float64:
        pytest.skip("a second for each model, made from the module that pt2 tests")
    policy = made_policies.policy(network, dtype)
    obs = observations(policy)
    path, difference = exported(policy, name, tmp_path, obs)
    assert difference <= TOLERANCE / 2
    right = made_policies.in_units(made_policies.expected(network, obs, dtype))
    np.testing.assert_allclose(FORMATS[name].run(path, obs, STEM), right, rtol=0, atol=TOLERANCE)


def test_bounds_are_rounded_inwards_and_a_fixed_action_is_possible(toy):
    toy.action_space = spaces.Box(np.array([0.1, -0.1, 0.1]), np.array([0.3, 0.1, 0.1]), dtype=np.float64)
    low, high, half_range = box_in_float32(toy)
    assert {part.dtype.name for part in (low, high, half_range)} == {"float32"}
    exact = toy.action_space
    assert (low.astype(np.float64) >= exact.low)[:2].all()
    assert (high.astype(np.float64) <= exact.high)[:2].all()
    np.testing.assert_allclose([low, high], [exact.low, exact.high], rtol=2e-7)


def test_the_plain_module_has_no_views(toy):
    """torch's exporter rejects parameters that are views of one tensor."""
    module = plain_module(toy)
    assert all(p.is_contiguous() and p.untyped_storage().nbytes() == 4 * p.numel() for p in module.parameters())
    assert {type(part).__module__ for part in module} <= {"torch.nn.modules.linear", "torch.nn.modules.activation"} | {
        "dpg_cli.export.module"
    }


# --- checking ---


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_file_that_acts_otherwise_is_not_kept(toy, tmp_path, monkeypatch, name):
    right, wrong = toy.scaled, np.nan if name == "pt2" else 1e-3
    monkeypatch.setattr(toy, "scaled", lambda obs: right(obs) + np.float32(wrong))
    with pytest.raises(ExportError, match=r"was not kept: its actions differ from the policy's by .* more than 1e-05$"):
        exported(toy, name, tmp_path)
    assert files(tmp_path) == []


def test_what_stood_there_before_stays_if_the_new_file_is_wrong(toy, tmp_path, monkeypatch):
    path, _ = exported(toy, "pt2", tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(toy, "scaled", lambda obs: np.zeros((len(obs), 1)))
    with pytest.raises(ExportError):
        exported(toy, "pt2", tmp_path)
    assert path.read_bytes() == before
    assert len(files(tmp_path)) == 1


def test_without_a_compiler_a_header_is_kept_unchecked(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(c, "COMPILERS", ("no-compiler",))
    assert exported(toy, "c", tmp_path)[1] is None
    assert (tmp_path / f"{STEM}.h").exists()


def test_a_compiler_that_does_not_work_is_none(toy, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "broken"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho stdio.h: no such file >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(c, "COMPILERS", (str(broken),))
    assert exported(toy, "c", tmp_path)[1] is None


@needs_c
def test_a_header_that_does_not_compile_is_not_kept(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(c.HELPERS, Dense, "void NAME_dense(")
    with pytest.raises(ExportError, match="rejects the header"):
        exported(toy, "c", tmp_path)
    assert files(tmp_path) == []


def test_a_weight_beyond_float_is_an_error(toy, tmp_path):
    toy.layers[0] = Dense(toy.layers[0].weight.astype(np.float64) * 1e300, toy.layers[0].bias)
    with pytest.raises(ExportError, match="beyond the range of float"):
        exported(toy, "c", tmp_path)


def test_a_difference_that_comes_from_large_observations_says_so(toy, tmp_path):
    toy.layers[0] = Dense(toy.layers[0].weight, np.zeros_like(toy.layers[0].bias))
    toy.layers[2] = Dense(toy.layers[2].weight, np.zeros_like(toy.layers[2].bias))
    large = np.float32([[1e5, 1e5 + i] for i in range(50)])
    toy.layers[0].weight[1] = -toy.layers[0].weight[0]
    with pytest.raises(ExportError, match=r"float32 rounds the policy's own by .*; algo.normalize_obs=true helps"):
        exported(toy, "c", tmp_path, large * np.float32(1.1))


# --- ONNX ---


@onnx_only
def test_the_model_is_as_documented(trained, tmp_path):
    import onnx

    policy = load_policy(trained(*arguments_of("a dictionary and unequal float64 bounds")))
    path, _ = exported(policy, "onnx", tmp_path)
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    for values, name, size in [(model.graph.input, "obs", policy.obs_dim), (model.graph.output, "action", 2)]:
        (value,) = values
        batch, features = value.type.tensor_type.shape.dim
        assert (value.name, value.type.tensor_type.elem_type) == (name, onnx.TensorProto.FLOAT)
        assert (batch.dim_param != "", features.dim_value) == (True, size)
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert found == {**policy.metadata, "run": "some/run"}


# --- torch ---


def test_a_program_needs_no_dpg_cli(toy, tmp_path):
    path, _ = exported(toy, "pt2", tmp_path)
    program = (
        "import sys, torch\n"
        "sys.modules['dpg_cli'] = None\n"
        "about = {'metadata.json': ''}\n"
        f"policy = torch.export.load({str(path)!r}, extra_files=about).module()\n"
        "print(policy(torch.tensor([[0.5, 1.0]])).item(), about['metadata.json'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    action, _, about = done.stdout.partition(" ")
    np.testing.assert_allclose(float(action), toy([0.5, 1.0]), rtol=1e-6)
    assert json.loads(about)["env_id"] == toy.env_id


# --- C ---


def compiled(folder, *command):
    done = subprocess.run([*command], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done


FREESTANDING = """\
#include "robot.h"
static float obs[robot_OBS_DIM], action[robot_ACTION_DIM];
void _start(void) { for (;;) robot_act(obs, action); }
"""


@needs_c
@pytest.mark.parametrize(
    "run",
    ["HalfCheetah", "a dictionary and unequal float64 bounds", "float64", "one layer", *made_policies.NETWORKS],
)
def test_a_header_compiles_without_warnings_and_links_without_a_library(trained, tmp_path, run):
    made = run in made_policies.NETWORKS
    exported(made_policies.policy(run) if made else load_policy(trained(*arguments_of(run))), "c", tmp_path)
    header = f"{STEM}.h"
    strict = ("-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wdouble-promotion", "-Wshadow")
    compiled(tmp_path, "gcc", *strict, "-std=c99", "-pedantic", "-c", "-x", "c", header, "-o", "a.o")
    compiled(tmp_path, "g++", *strict, "-std=c++11", "-pedantic", "-c", "-x", "c++", header, "-o", "b.o")
    (tmp_path / "start.c").write_text(FREESTANDING)
    for level in ("-O0", "-O3"):  # at which GCC would call memcpy or memset
        free = ("-ffreestanding", "-nostdlib", "-static", level)
        compiled(tmp_path, "gcc", *strict, "-std=c99", *free, "start.c", "-o", "free")


@needs_c
def test_one_function_is_all_that_a_header_defines(toy, tmp_path):
    exported(toy, "c", tmp_path)
    compiled(tmp_path, "gcc", "-std=c99", "-c", "-x", "c", f"{STEM}.h", "-o", "a.o")
    names = compiled(tmp_path, "nm", "-g", "a.o").stdout.split()
    assert names[2:] == [f"{STEM}_act"]


def test_the_numbers_of_a_header_are_exactly_those_of_the_policy(toy, tmp_path):
    path, _ = exported(toy, "c", tmp_path)
    text = path.read_text()
    weight, bias = (
        np.array([np.float32(number.strip()[:-1]) for number in body.split(",")])
        for body in re.findall(rf"{STEM}_0_\w+\[\d+\] = {{(.*?)}}", text, flags=re.DOTALL)
    )
    np.testing.assert_array_equal(weight.reshape(8, 2).T, toy.layers[0].weight)
    np.testing.assert_array_equal(bias, toy.layers[0].bias)


@pytest.mark.parametrize("number", [0.1, 1.0, -0.0, 1e-45, 3.4028234e38, 1e10, 123456789.0, np.pi])
def test_a_literal_reads_back_as_the_same_float(number):
    text = c._literal(number)
    assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?f", text)
    assert re.search(r"[.e]", text)
    assert np.float32(text[:-1]).tobytes() == np.float32(number).tobytes()


@pytest.mark.parametrize(
    ("network", "widths"),
    [
        ("simba", {"a": 32, "b": 32, "c": 128}),
        ("elu", {"a": 64, "b": 48}),
        ("a residual of the observation", {"a": 17, "b": 17}),
    ],
)
def test_the_comment_counts_the_buffers(tmp_path, network, widths):
    """A residual keeps its input in a buffer of its own, unless that is the observation."""
    path, _ = exported(made_policies.policy(network), "c", tmp_path)
    text = path.read_text()
    (declared,) = re.findall(r"^    float (a\[.*);$", text, flags=re.MULTILINE)
    assert {name: int(width) for name, width in re.findall(r"(\w)\[(\d+)\]", declared)} == widths
    assert f"bytes of constants, {4 * sum(widths.values()):,} bytes of stack" in text


def computed(policy, folder, call, numbers):
    """The results of a C expression of the header for each number, a float `x`, and `y` to write to."""
    exported(policy, "c", folder)
    driver = (
        '#include <stdio.h>\n#include "robot.h"\n'
        f"int main(void) {{ float x, y; while (fread(&x, 4, 1, stdin)) {{ {call}; fwrite(&y, 4, 1, stdout); }} }}"
    )
    (folder / "main.c").write_text(driver)
    compiled(folder, "gcc", "-std=c99", "-O2", "main.c", "-o", "main")
    done = subprocess.run([folder / "main"], input=numbers.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


def every(step, sign=1):
    """Floats of one sign over their whole range, from the least subnormal number to infinity, and 0."""
    patterns = np.append(np.arange(0, 0x7F800000, step, np.uint32), np.uint32(0x7F800000))
    return sign * patterns.view(np.float32)


@needs_c
def test_tanh_is_exact_to_float(toy, tmp_path):
    numbers = np.concatenate([np.linspace(-12, 12, 20_001), [0.0, np.inf, -np.inf, 1e-30]]).astype(np.float32)
    found = computed(toy, tmp_path, "robot_tanh(&x, &y, 1)", numbers)
    np.testing.assert_allclose(found, np.tanh(numbers.astype(np.float64)), atol=3e-7, rtol=3e-7)
    assert (np.abs(found) <= 1).all()


@needs_c
def test_elu_is_exact_to_float(tmp_path):
    numbers = np.concatenate([every(9_973), every(997, sign=-1), np.linspace(-20, 1, 200_001, dtype=np.float32)])
    found = computed(made_policies.policy("elu"), tmp_path, "robot_elu(&x, &y, 1)", numbers)
    negative = numbers < 0
    np.testing.assert_array_equal(found[~negative], numbers[~negative])
    right = np.expm1(numbers[negative].astype(np.float64))
    np.testing.assert_allclose(found[negative], right, atol=2e-7, rtol=0)
    np.testing.assert_allclose(found[negative], right, atol=1e-44, rtol=3e-7)  # also where it is nearly 0
    assert (found >= -1).all()


@needs_c
def test_the_square_root_is_exact_to_float(tmp_path):
    numbers = every(997)
    found = computed(made_policies.policy("simba"), tmp_path, "y = robot_sqrt(x)", numbers)
    np.testing.assert_allclose(found, np.sqrt(numbers.astype(np.float64)), rtol=2e-7, atol=0)


@needs_c
@pytest.mark.parametrize("optimization", ["-O0", "-O3", "-Ofast"])
@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38])
def test_a_function_returns_for_any_number(tmp_path, number, optimization):
    """The loops of the square root end, even where the compiler takes all numbers to be finite."""
    policy = made_policies.policy("simba")
    exported(policy, "c", tmp_path)
    (tmp_path / "driver.c").write_text(c.DRIVER.replace("NAME", STEM).replace("exported.h", f"{STEM}.h"))
    compiled(tmp_path, "gcc", "-std=c99", optimization, "driver.c", "-o", "driver")
    obs = np.full(policy.obs_dim, number, np.float32).tobytes()
    done = subprocess.run([tmp_path / "driver"], input=obs, capture_output=True, check=True, timeout=10)
    assert len(done.stdout) == 4 * made_policies.ACTION_DIM


@needs_c
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_a_layer_norm_is_exact_to_float(tmp_path, offset):
    policy = made_policies.policy("simba")
    exported(policy, "c", tmp_path)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "robot.h"\n'
        "int main(void) { static float w[512], b[512], x[512];"
        " for (int i = 0; i < 512; i++) { w[i] = 1; b[i] = 0; }"
        " while (fread(x, sizeof x, 1, stdin)) { robot_layer_norm(w, b, 1e-6f, x, x, 512);"
        " fwrite(x, sizeof x, 1, stdout); } }"
    )
    compiled(tmp_path, "gcc", "-std=c99", "-O2", "main.c", "-o", "main")
    x = (offset + np.random.default_rng(0).normal(0, 1, (20, 512))).astype(np.float32)
    done = subprocess.run([tmp_path / "main"], input=x.tobytes(), capture_output=True, check=True)
    exact = x.astype(np.float64)
    right = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    found = np.frombuffer(done.stdout, np.float32).reshape(x.shape)
    np.testing.assert_allclose(found, right, rtol=0, atol=3e-6 + abs(offset) * 6e-8)  # the mean is rounded


def test_a_comment_says_what_each_number_is(trained, tmp_path):
    policy = load_policy(trained(*arguments_of("a dictionary and unequal float64 bounds")))
    path, _ = exported(policy, "c", tmp_path)
    comment = path.read_text().partition("*/")[0]
    for line in (
        "obs[0]: observation['position']\n",
        "obs[1] to obs[3]: observation['contact'], one-hot, from -1\n",
        "obs[4] to obs[14]: observation['kinds'], one-hot, from [[0 0] [0 0]]\n",
        "obs[15] to obs[16]: observation['flags'][0]\n",
        "obs[17] to obs[18]: observation['flags'][1]\n",
        "action[0]: from -0.0",
        "action[1]: from 0.3",
    ):
        assert line in comment
    assert "Policy for toy_envs:Toy/Parts-v0 (td3, step" in comment


@needs_c
@pytest.mark.parametrize("end", ["*/", "*\\\n/", "*??/\n/", "/* */", "\x1b]0;*/"])
def test_a_name_cannot_leave_the_comment(finished, tmp_path, end):
    run = finished(TOY, *SMALL)
    attack = f'{end} __attribute__((constructor)) static void x(void) {{ system("touch {tmp_path}/ran"); }} /*'
    rewrite(checkpoint.find(run, "best"), entries(env_id=attack))
    path, difference = exported(load_policy(run), "c", tmp_path)
    assert difference <= TOLERANCE
    assert not (tmp_path / "ran").exists()
    assert path.read_text().count("*/") == 2  # its own comments
    compiled(tmp_path, "gcc", "-Wall", "-Wextra", "-Werror", "-std=c99", "-c", "-x", "c", path.name, "-o", "a.o")


@needs_c
def test_nan_in_an_observation_is_nan_in_the_action(finished, tmp_path):
    policy = load_policy(finished(*arguments_of("normalize_obs")))
    path, _ = exported(policy, "c", tmp_path)
    assert np.isnan(c.run(path, np.full((2, 2), np.nan, np.float32), STEM)).all()


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_an_exported_file_names_no_path_of_the_machine(trained, tmp_path, name):
    chosen = FORMATS[name]
    for module in chosen.modules:
        pytest.importorskip(module)
    policy = load_policy(trained(TOY, *SMALL), "latest")
    out = tmp_path / f"policy{chosen.suffix}"
    export(policy, chosen, {"dpg_cli": "0"}, np.zeros((2, policy.obs_dim), np.float32), out)
    data = out.read_bytes()
    assert b"site-packages" not in data
    assert str(Path(dpg_cli.__file__).parent).encode() not in data
