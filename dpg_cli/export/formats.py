"""The formats: how each is written, and how a file of it is run to check it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpg_cli.export import c, onnx, pt2
from dpg_cli.policy import Policy


@dataclass(frozen=True)
class Format:
    """A format to export to.

    Attributes:
        suffix: of its files.
        modules: what must be installed besides dpg-cli's own dependencies.
        write: the content of a file, given the policy, its metadata and the stem of the file's name.
        run: the actions of a file, `(N, action_dim)`, given its path, observations `(N, obs_dim)` and the stem of its
            later name; None if it cannot be run here.
        runner: what runs it, for messages.
        tools: of which one must be on the PATH for it to be run.
    """

    suffix: str
    modules: tuple[str, ...]
    write: Callable[[Policy, Mapping[str, Any], str], bytes]
    run: Callable[[Path, np.ndarray, str], np.ndarray | None]
    runner: str
    tools: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), onnx.write, onnx.run, "onnxruntime"),
    "pt2": Format(".pt2", (), pt2.write, pt2.run, "torch"),
    "c": Format(".h", (), c.write, c.run, "the C compiler", c.COMPILERS),
}
