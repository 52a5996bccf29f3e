"""ONNX: one file of opset 18, without external data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpg_cli.policy import Policy

OPSET = 18


def write(policy: Policy, metadata: Mapping[str, Any], stem: str) -> bytes:
    """The model: input `obs` (batch, obs_dim) and output `action` (batch, action_dim), both float32."""
    import onnx
    import torch

    from dpg_cli.export.module import plain_module

    program = torch.onnx.export(
        plain_module(policy),
        (torch.zeros(2, policy.obs_dim),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["obs"],
        output_names=["action"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for described in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        described.ClearField("metadata_props")  # stack traces, with the paths of this machine
    model.producer_name, model.producer_version = "dpg-cli", str(metadata["dpg_cli"])
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def run(path: Path, obs: np.ndarray, stem: str) -> np.ndarray:
    """The actions of a model, in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    batches = [session.run(["action"], {"obs": part})[0] for part in (obs[:1], obs[1:])]  # their size is free
    return np.concatenate(batches)
