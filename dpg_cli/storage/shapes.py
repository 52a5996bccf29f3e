"""Check that a stored state has the form of the object it is loaded into, such as a network or a generator."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor


def check_form(own: Any, stored: Any, where: str) -> None:
    """Compare keys, lengths, shapes and types; numbers and None may replace each other.

    Args:
        own: the state of a fresh object; an empty part accepts any form.
        stored: the state to load into that object.
        where: for messages.

    Raises:
        ValueError: they differ; the message says where.
    """
    if isinstance(own, Mapping | list) and not own:
        return
    if isinstance(own, np.ndarray | Tensor):
        if type(stored) is not type(own) or (stored.shape, stored.dtype) != (own.shape, own.dtype):
            raise ValueError(f"{where} has another shape or type")
    elif isinstance(own, Mapping):
        if not isinstance(stored, dict) or stored.keys() != own.keys():
            raise ValueError(f"{where} does not hold {', '.join(own)}")
        for key, value in own.items():
            check_form(value, stored[key], f"{where}.{key}")
    elif isinstance(own, Sequence) and not isinstance(own, str):
        if not isinstance(stored, list) or len(stored) != len(own):
            raise ValueError(f"{where} does not hold {len(own)} parts")
        for index, value in enumerate(own):
            check_form(value, stored[index], f"{where}.{index}")
    elif own is None or type(own) in (bool, float):
        if not isinstance(stored, bool | int | float | None):
            raise ValueError(f"{where} is not a number")
    elif type(stored) is not type(own):
        raise ValueError(f"{where} is not a {type(own).__name__}")
