"""Policies with layers of every kind, made by hand, and what they compute in float64 with torch."""

import numpy as np
import torch
from gymnasium import spaces
from safetensors.numpy import save
from torch.nn import functional

from dpg_cli.layers import read_layers
from dpg_cli.policy import Policy
from dpg_cli.storage.policy_file import StoredPolicy, metadata, with_metadata

OBS_DIM, ACTION_DIM = 17, 6
RELU, ELU, TANH = ({"type": name} for name in ("relu", "elu", "tanh"))


def dense(name):
    return {"type": "dense", "weight": f"{name}.weight", "bias": f"{name}.bias"}


def layer_norm(name):
    return {"type": "layer_norm", "weight": f"{name}.weight", "bias": f"{name}.bias", "epsilon": 1e-6}


def residual(*layers):
    return {"type": "residual", "layers": list(layers)}


def normalize(clip):
    return {"type": "normalize", "mean": "mean", "var": "var", "epsilon": 1e-8, "clip": clip}


AVG_L1_NORM = {"type": "avg_l1_norm", "epsilon": 1e-8}


def concatenate(*branches):
    return {"type": "concatenate", "branches": [list(branch) for branch in branches]}


NETWORKS = {
    "simba": [
        normalize(None),
        dense("in"),
        *(residual(layer_norm(f"norm{i}"), dense(f"up{i}"), RELU, dense(f"down{i}")) for i in range(2)),
        layer_norm("norm"),
        dense("out"),
        TANH,
    ],
    "elu": [dense("first"), ELU, dense("second"), ELU, dense("last"), TANH],
    "branches": [
        concatenate([dense("in"), AVG_L1_NORM], [dense("first"), ELU, dense("second"), AVG_L1_NORM]),
        dense("joined"),
        RELU,
        concatenate([ELU], [AVG_L1_NORM]),
        concatenate([dense("again")], [ELU, dense("again")], [RELU]),
        dense("end"),
        TANH,
    ],
    "a residual of the observation": [
        residual(ELU),
        residual(dense("same")),
        layer_norm("obs_norm"),
        normalize(2.0),
        dense("short"),
        TANH,
    ],
}


def tensors(dtype):
    """Tensors for all of them."""
    random = np.random.default_rng(0)
    sizes = {"in": (17, 32), "out": (32, 6), "up0": (32, 128), "up1": (32, 128), "down0": (128, 32), "down1": (128, 32)}
    sizes |= {"first": (17, 64), "second": (64, 48), "last": (48, 6), "same": (17, 17), "short": (17, 6)}
    sizes |= {"joined": (32 + 48, 10), "again": (20, 4), "end": (28, 6)}
    made = {"mean": random.normal(0, 2, (1, 1, 17)), "var": random.uniform(0.1, 9, (1, 1, 17))}  # float64, as in a run
    for name, (inputs, outputs) in sizes.items():
        made[f"{name}.weight"] = random.normal(0, inputs**-0.5, (1, inputs, outputs)).astype(dtype)
        made[f"{name}.bias"] = random.normal(0, 0.1, (1, 1, outputs)).astype(dtype)
    for name, size in {"norm0": 32, "norm1": 32, "norm": 32, "obs_norm": 17}.items():
        made[f"{name}.weight"] = random.normal(1, 0.2, (1, 1, size)).astype(dtype)
        made[f"{name}.bias"] = random.normal(0, 0.2, (1, 1, size)).astype(dtype)
    return made


OBSERVED = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float64)
ACTING = spaces.Box(np.float32([-1, -2, -0.4, 0, 0.1, -1]), np.float32([1, 2, 0.4, 3, 0.2, 5]))


def about(name, step):
    return metadata("Made-v0", OBSERVED, ACTING, NETWORKS[name], "td3") | {"step": step, "dpg_cli": "0"}


def policy(name, dtype=np.float32):
    """The policy with one of `NETWORKS`."""
    layers = read_layers(NETWORKS[name], tensors(dtype), OBS_DIM, ACTION_DIM)
    return Policy(StoredPolicy("Made-v0", OBSERVED, ACTING, layers, 7, about(name, 7)), {})


def policy_file(name, step):
    """The content of its file."""
    return with_metadata(save(tensors(np.float32)), about(name, step))


def in_units(scaled):
    """Actions in the units of the environment, for actions in [-1, 1]."""
    low, high = ACTING.low.astype(np.float64), ACTING.high.astype(np.float64)
    return low + (scaled + 1) / 2 * (high - low)


def expected(name, obs, dtype=np.float32):
    """The actions in [-1, 1] of such a policy, `(..., 6)`, for observations `(..., 17)`."""
    t = {key: torch.from_numpy(value[0].astype(np.float64)) for key, value in tensors(dtype).items()}
    x = torch.from_numpy(np.asarray(obs, np.float64))

    def linear(x, name):
        return functional.linear(x, t[f"{name}.weight"].T, t[f"{name}.bias"][0])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"][0], t[f"{name}.bias"][0], 1e-6)

    def standardized(x):
        return (x - t["mean"][0]) / (t["var"][0] + 1e-8).sqrt()

    def avg_l1_norm(x):
        return x / x.abs().mean(-1, keepdim=True).clamp(min=1e-8)

    if name == "simba":
        h = linear(standardized(x), "in")
        for i in range(2):
            h = h + linear(functional.relu(linear(norm(h, f"norm{i}"), f"up{i}")), f"down{i}")
        y = linear(norm(h, "norm"), "out")
    elif name == "elu":
        y = linear(functional.elu(linear(functional.elu(linear(x, "first")), "second")), "last")
    elif name == "branches":
        other = avg_l1_norm(linear(functional.elu(linear(x, "first")), "second"))
        h = linear(torch.cat([avg_l1_norm(linear(x, "in")), other], -1), "joined").relu()
        h = torch.cat([functional.elu(h), avg_l1_norm(h)], -1)
        y = linear(torch.cat([linear(h, "again"), linear(functional.elu(h), "again"), h.relu()], -1), "end")
    else:
        h = x + functional.elu(x)
        h = h + linear(h, "same")
        y = linear(standardized(norm(h, "obs_norm")).clamp(-2, 2), "short")
    return y.tanh().numpy()
