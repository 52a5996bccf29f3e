"""A state as a tree for JSON, and the tensors that it refers to by number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """The tree, and the tensors by their numbers; arrays become tensors.

    Args:
        state: nested dictionaries and lists of numbers, strings, tensors and arrays.
    """
    tensors: dict[str, Tensor] = {}

    def tree(node: Any) -> Any:
        if isinstance(node, np.ndarray | Tensor):
            name = str(len(tensors))
            tensor = node if isinstance(node, Tensor) else torch.from_numpy(node.copy())
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"array" if isinstance(node, np.ndarray) else "tensor": name}
        if isinstance(node, Mapping):
            return {key: tree(value) for key, value in node.items()}
        if isinstance(node, Sequence) and not isinstance(node, str):
            return [tree(value) for value in node]
        return node

    return tree(state), tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `pack` was given."""
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        if set(tree) == {"array"}:
            return tensors[tree["array"]].numpy()
        return {key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree
