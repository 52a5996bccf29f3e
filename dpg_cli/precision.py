"""Precision of arithmetic: what `precision=` can be, and torch's faster float32 products where they lose nothing."""

import logging
import math
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Precision(NamedTuple):
    """What is computed in which type."""

    parameters: torch.dtype  # of networks, optimizers, targets and the replay
    products: torch.dtype  # of the large matrix products of an update
    observations: type[np.floating[Any]]  # as environments give them


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32, np.float32),
    "bf16": Precision(torch.float32, torch.bfloat16, np.float32),
    "float64": Precision(torch.float64, torch.float64, np.float64),
}


MUCH_FASTER = 1.4  # so that the choice does not change with the moment, nor a seed's last digits with it
_of_large_products = "highest"  # as torch.set_float32_matmul_precision takes it


def choose_products(device: torch.device) -> None:
    """Let torch take oneDNN for large float32 products on a CPU where it is as exact as MKL and much faster.

    torch calls it the precision "medium", which allows rounding to bfloat16. Processors with units for that (AMX) do
    round, others don't; and on some MKL makes no use of the widest vectors. So both are tried by a product.
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
    """How many times as fast as MKL oneDNN multiplies two matrices, at best, on one thread: several wait for others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = {"highest": math.inf, "medium": math.inf}
    for precision in [*best] * 30:  # in turns, for a machine that others use too
        torch.set_float32_matmul_precision(precision)
        start = time.perf_counter()
        a @ b
        best[precision] = min(best[precision], time.perf_counter() - start)
    torch.set_num_threads(threads)
    return best["highest"] / best["medium"]


def is_large(inputs: int, outputs: int) -> bool:
    """Whether a layer's products are large: those with an observation, an action or a value are not."""
    return inputs >= 64 and outputs >= 64


def prepare_product(rows: int, *, large: bool) -> None:
    """Choose the library for float32 products from here on.

    oneDNN takes 20 µs to begin one, which only a large one wins back.

    Args:
        rows: of the batch.
        large: as `is_large` says of the layer.
    """
    if _of_large_products != "highest":
        torch.set_float32_matmul_precision(_of_large_products if large and rows >= 128 else "highest")
