"""Precision of arithmetic: what `precision=` can be, and torch's faster float32 products where they lose nothing."""

from typing import Any, NamedTuple

import numpy as np
import torch


class Precision(NamedTuple):
    """What is computed in which type."""

    parameters: torch.dtype  # of networks, optimizers, targets and the replay
    products: torch.dtype  # of the matrix products of an update
    observations: type[np.floating[Any]]  # as environments give them


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32, np.float32),
    "bf16": Precision(torch.float32, torch.bfloat16, np.float32),
    "float64": Precision(torch.float64, torch.float64, np.float64),
}


_of_large_products = "highest"  # as torch.set_float32_matmul_precision takes it


def choose_products(device: torch.device) -> None:
    """Let torch take oneDNN for large float32 products on a CPU if it is as exact there as MKL.

    torch calls it the precision "medium", which allows rounding to bfloat16. Processors with units for that (AMX) do
    round, others don't and are faster all the same; so it is tried by a product.
    """
    global _of_large_products
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "highest")
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    if (a @ b - exact).norm() > 1e-6 * exact.norm():
        torch.set_float32_matmul_precision("highest")
    _of_large_products = torch.get_float32_matmul_precision()


def prepare_product(rows: int, inputs: int, outputs: int) -> None:
    """Choose the library for a float32 product: oneDNN takes 20 µs to begin one, which only a large one wins back."""
    large = rows >= 128 and inputs >= 64 and outputs >= 64
    torch.set_float32_matmul_precision(_of_large_products if large else "highest")
