"""Precisions: which products torch takes, and what bf16 leaves in float32."""

import pytest
import torch

from dpg_cli import precision
from dpg_cli.precision import choose_products, prepare_product


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_float32_matmul_precision()
    yield
    precision._of_large_products = "highest"
    torch.set_float32_matmul_precision(before)


def test_products_on_a_cpu_are_exact_to_float32_whatever_is_chosen():
    choose_products(torch.device("cpu"))
    a, b = torch.randn(2, 100, 300, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = a @ b
    assert (a.float() @ b.float() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize(("times", "chosen"), [(0.9, "highest"), (1.2, "highest"), (1.8, "medium")])
def test_only_a_library_that_is_much_faster_is_another_choice(monkeypatch, times, chosen):
    monkeypatch.setattr(precision, "times_as_fast", lambda a, b: times)
    choose_products(torch.device("cpu"))
    prepare_product(256, 256, 256)
    assert torch.get_float32_matmul_precision() == chosen
    for small in ((10, 256, 256), (256, 17, 256), (256, 256, 6)):
        prepare_product(*small)
        assert torch.get_float32_matmul_precision() == "highest"


def test_products_that_round_are_not_taken(monkeypatch):
    """As on a processor with AMX."""
    product = torch.Tensor.__matmul__

    def rounding(a, b):
        if a.dtype is torch.float32 and torch.get_float32_matmul_precision() == "medium":
            return product(a.bfloat16(), b.bfloat16()).float()
        return product(a, b)

    monkeypatch.setattr(precision.torch.Tensor, "__matmul__", rounding)
    monkeypatch.setattr(precision, "times_as_fast", lambda a, b: 2.0)
    choose_products(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
