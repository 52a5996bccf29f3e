"""PyTorch's own format, of `torch.export`: loaded without dpg-cli, by `torch.export.load(path).module()`."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpg_cli.policy import Policy

METADATA = "metadata.json"


def write(policy: Policy, metadata: Mapping[str, Any], stem: str) -> bytes:
    """The program: from `obs` (batch, obs_dim) to actions (batch, action_dim), both float32."""
    import torch

    from dpg_cli.export.module import plain_module

    batch = torch.export.Dim("batch")
    program = torch.export.export(plain_module(policy), (torch.zeros(2, policy.obs_dim),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata))})
    return buffer.getvalue()


def run(path: Path, obs: np.ndarray, stem: str) -> np.ndarray:
    """The actions of a program, in torch."""
    import torch

    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    with torch.no_grad():
        batches = [module(torch.from_numpy(part)).numpy() for part in (obs[:1], obs[1:])]  # their size is free
    return np.concatenate(batches)
