"""The layers of stored policies: what they compute, and which descriptions are rejected."""

import made_policies
import numpy as np
import pytest
import torch
from made_policies import (
    AVG_L1_NORM,
    ELU,
    NETWORKS,
    OBS_DIM,
    RELU,
    TANH,
    concatenate,
    dense,
    layer_norm,
    normalize,
    residual,
)
from torch.nn import functional

from dpg_cli.layers import (
    MAX_LAYERS,
    TYPES,
    Dense,
    Elu,
    LayerNorm,
    Residual,
    UnknownLayerError,
    plain_layers,
    read_layers,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_policy_computes_what_torch_computes_in_float64(name, dtype):
    policy = made_policies.policy(name, dtype)
    assert policy.dtype == dtype
    obs = np.random.default_rng(1).normal(0, 3, (4, 25, OBS_DIM)).astype(np.float32)
    flat = obs.astype(dtype)
    right = made_policies.expected(name, obs, dtype)
    tolerance = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(policy.scaled(flat), right, rtol=0, atol=tolerance)
    one_by_one = np.stack([policy.scaled(single) for single in flat[0]])
    np.testing.assert_allclose(one_by_one, right[0], rtol=0, atol=tolerance)
    assert one_by_one.dtype == dtype
    np.testing.assert_allclose(policy(obs), made_policies.in_units(right), rtol=0, atol=1e-5)
    assert (policy(obs) == policy(obs)).all()  # no layer changes what it is given


def test_the_made_networks_have_every_kind_of_layer():
    layers = [layer for network in NETWORKS.values() for layer in network]
    nested = [inner for layer in layers for part in [layer.get("layers", [])] for inner in part]
    nested += [inner for layer in layers for branch in layer.get("branches", []) for inner in branch]
    assert {layer["type"] for layer in layers + nested} == set(TYPES)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_a_layer_norm_in_float32_subtracts_the_mean_first(offset):
    random = np.random.default_rng(0)
    x = (offset + random.normal(0, 1, (50, 256))).astype(np.float32)
    weight, bias = random.normal(1, 0.1, (2, 256)).astype(np.float32)
    right = functional.layer_norm(
        torch.from_numpy(x).double(), (256,), torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), 1e-6
    )
    found = LayerNorm(weight, bias, 1e-6)(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, rtol=0, atol=2e-6 + abs(offset) * 2e-7)  # the mean is rounded


def test_a_layer_norm_of_equal_numbers_is_its_bias():
    norm = LayerNorm(np.ones(3, np.float32), np.float32([1, 2, 3]), 1e-6)
    np.testing.assert_array_equal(norm(np.full((2, 3), 5, np.float32)), [[1, 2, 3]] * 2)
    assert norm(np.empty((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elu(dtype):
    x = np.concatenate([np.linspace(-20, 20, 2001), [0.0, -1e-6, 1e30, -1e30]]).astype(dtype)
    found = Elu()(x)
    np.testing.assert_allclose(found, functional.elu(torch.from_numpy(x).double()), rtol=4 * np.finfo(dtype).eps)
    assert found.dtype == dtype
    assert np.isnan(Elu()(np.array([np.nan], dtype))).all()


def test_a_residual_leaves_its_input():
    x = np.float32([-1.0, 2.0])
    half = Dense(np.eye(2, dtype=np.float32) / 2, np.zeros(2, np.float32))
    np.testing.assert_array_equal(Residual((half,))(x), [-1.5, 3.0])
    np.testing.assert_array_equal(x, [-1.0, 2.0])


def test_the_type_is_that_of_the_dense_layers_wherever_they_are():
    tensors = made_policies.tensors(np.float64)
    layers = read_layers([residual(dense("same"))], tensors, OBS_DIM, OBS_DIM)
    assert [type(layer) for layer in layers] == [Residual]
    assert [layer.weight.dtype for layer in plain_layers(layers)] == [np.float64]


def test_all_layers_compute_in_the_type_of_the_weights():
    tensors = made_policies.tensors(np.float32)
    tensors |= {name: values.astype(np.float64) for name, values in tensors.items() if "norm" in name or "bias" in name}
    layers = read_layers(NETWORKS["simba"], tensors, OBS_DIM, 6)
    values = [value for layer in plain_layers(layers) for value in vars(layer).values()]
    assert {value.dtype for value in values if isinstance(value, np.ndarray)} == {np.dtype(np.float32)}


# --- damage ---

SAME, NORM = dense("same"), layer_norm("obs_norm")
SOUND = [normalize(None), residual(NORM, SAME, ELU), SAME]
INVALID = {
    "a layer_norm without a weight": [{**NORM, "weight": "nix"}, SAME],
    "a layer_norm without epsilon": [{key: NORM[key] for key in ("type", "weight", "bias")}, SAME],
    "a layer_norm of another size": [layer_norm("norm"), SAME],
    "a layer_norm whose bias has another size": [{**NORM, "bias": "norm.bias"}, SAME],
    "a layer_norm whose weight is a matrix": [{**NORM, "weight": "same.weight"}, SAME],
    "a layer_norm that is not finite": [{**NORM, "bias": "infinite"}, SAME],
    "a layer_norm of whole numbers": [{**NORM, "weight": "whole"}, SAME],
    "a layer_norm beyond float32": [{**NORM, "weight": "large"}, SAME],
    "a bias beyond float32": [{**SAME, "bias": "large"}],
    "a layer_norm of nothing": [dense("none"), layer_norm("empty"), dense("enon")],
    **{
        f"an epsilon of {value!r}": [{**NORM, "epsilon": value}, SAME]
        for value in (0, 0.0, -1e-6, 1e-300, 1e300, 10**400, float("nan"), float("inf"), "1e-6", None, True, [1e-6])
    },
    **{
        f"a clip of {value!r}": [normalize(value), SAME]
        for value in (0.0, -1.0, 1e300, 10**400, float("nan"), float("inf"), "10", True, [10.0])
    },
    "normalisation without a clip": [{key: normalize(1.0)[key] for key in ("type", "mean", "var", "epsilon")}, SAME],
    "branches without a list": [{"type": "concatenate"}, SAME],
    "branches of null": [{"type": "concatenate", "branches": None}, SAME],
    "no branches": [concatenate(), SAME],
    "a branch of null": [{"type": "concatenate", "branches": [None]}, SAME],
    "a branch that is a layer": [{"type": "concatenate", "branches": [SAME]}, SAME],
    "a branch of numbers": [concatenate([1, 2]), SAME],
    "an empty branch": [concatenate([SAME], []), SAME],
    "branches of another size": [concatenate([SAME], [SAME]), SAME],
    "branches in a branch": [concatenate([concatenate([SAME])]), SAME],
    "a residual in a branch": [concatenate([residual(SAME)]), SAME],
    "branches in a residual": [residual(concatenate([SAME])), SAME],
    "an avg_l1_norm without epsilon": [{"type": "avg_l1_norm"}, SAME],
    "an avg_l1_norm of nothing": [dense("none"), AVG_L1_NORM, dense("enon")],
    "a residual without layers": [residual(), SAME],
    "a residual without a list": [{"type": "residual"}, SAME],
    "a residual of null": [{"type": "residual", "layers": None}, SAME],
    "a residual of a layer": [{"type": "residual", "layers": SAME}, SAME],
    "a residual of text": [{"type": "residual", "layers": "elu"}, SAME],
    "a residual of numbers": [{"type": "residual", "layers": [1, 2]}, SAME],
    "a residual of layers without types": [residual({}), SAME],
    "a residual of a type that is a list": [residual({"type": ["elu"]}), SAME],
    "a residual that changes the size": [residual(dense("short")), SAME],
    "a residual whose layers do not fit": [residual(dense("short"), SAME), SAME],
    "a residual in a residual": [residual(residual(ELU)), SAME],
    "a residual in a residual, of no layer at all": [residual(residual({"type": "nix"})), SAME],
    "a residual without a tensor": [residual(dense("nix")), SAME],
    "a residual in another type": [residual(dense("double")), SAME],
    "no dense layer": [residual(NORM, RELU), TANH],
    "too many layers in a residual": [residual(*[RELU] * MAX_LAYERS), SAME],
    "too many residuals": [*[residual(RELU)] * (MAX_LAYERS // 2), SAME],
}


def read(network):
    made = made_policies.tensors(np.float32)
    made |= {"infinite": np.full((1, 1, 17), np.inf, np.float32), "large": np.full((1, 1, 17), 1e300)}
    made |= {"whole": np.ones((1, 1, 17), np.int64), "double.bias": made["same.bias"]}
    made |= {f"empty.{name}": np.zeros((1, 1, 0), np.float32) for name in ("weight", "bias")}
    made |= {"none.weight": np.zeros((1, 17, 0), np.float32), "none.bias": made["empty.bias"]}
    made |= {"enon.weight": np.zeros((1, 0, 17), np.float32), "enon.bias": made["same.bias"]}
    made["double.weight"] = made["same.weight"].astype(np.float64)
    return read_layers(network, made, OBS_DIM, OBS_DIM)


def test_a_sound_description_is_read():
    assert len(read(SOUND)) == 3
    assert len(read([*[residual(RELU)] * (MAX_LAYERS // 2 - 1), RELU, SAME])) == MAX_LAYERS // 2 + 1


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_description(name):
    with pytest.raises((ValueError, LookupError, TypeError)) as caught:
        read(INVALID[name])
    assert not isinstance(caught.value, UnknownLayerError)


@pytest.mark.parametrize("network", [[{"type": "swish"}, SAME], [residual(SAME, {"type": "swish"}), SAME]])
def test_an_unknown_layer(network):
    with pytest.raises(UnknownLayerError, match="a layer of the type 'swish'"):
        read(network)
