"""Precision of arithmetic: the values of `precision=`, and faster float32 products where they lose no accuracy."""

import logging
import math
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Precision(NamedTuple):
    """The number types of a run."""

    parameters: torch.dtype  # of networks, optimizers, targets and the replay
    products: torch.dtype  # of the large matrix products of an update
    observations: type[np.floating[Any]]  # as environments return them


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32, np.float32),
    "bf16": Precision(torch.float32, torch.bfloat16, np.float32),
    "float64": Precision(torch.float64, torch.float64, np.float64),
}


MUCH_FASTER = 1.4  # a margin, so that noise in the timing changes neither the choice nor a seed's last digits
_of_large_products = "highest"  # argument of torch.set_float32_matmul_precision


def choose_products(device: torch.device) -> None:
    """Use oneDNN for large float32 products on a CPU if it is as exact as MKL and much faster.

    torch uses it at precision "medium", which allows rounding to bfloat16. Processors with units for that (AMX) do
    round, others do not. On some processors MKL does not use the widest vectors. So a product is tried with both.
    """
    global _of_large_products
    _of_large_products = "highest"
    if device.type == "cpu":
        a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
        exact = a.double() @ b.double()
        torch.set_float32_matmul_precision("medium")
        error = (a @ b - exact).norm() / exact.norm()
        if error < 1e-6 and times_as_fast(a, b) > MUCH_FASTER:
            _of_large_products = "medium"
    torch.set_float32_matmul_precision(_of_large_products)
    log.info("large float32 products: %s", "oneDNN" if _of_large_products == "medium" else "torch's default")


def times_as_fast(a: Tensor, b: Tensor) -> float:
    """Speed of oneDNN relative to MKL for one product, at best, on one thread: several wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = {"highest": math.inf, "medium": math.inf}
    for precision in [*best] * 30:  # in turns, as others may use the machine
        torch.set_float32_matmul_precision(precision)
        start = time.perf_counter()
        a @ b
        best[precision] = min(best[precision], time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best["highest"] / best["medium"]


def is_large(inputs: int, outputs: int) -> bool:
    """Whether a layer's products are large, that is, it has many inputs and many outputs."""
    return inputs >= 64 and outputs >= 64


def prepare_product(rows: int, *, large: bool) -> None:
    """Choose the library for the float32 products that follow.

    oneDNN takes 20 µs to start a product, which pays off only for a large one.

    Args:
        rows: of the batch.
        large: whether the layer is; see `is_large`.
    """
    if _of_large_products != "highest":
        torch.set_float32_matmul_precision(_of_large_products if large and rows >= 128 else "highest")
