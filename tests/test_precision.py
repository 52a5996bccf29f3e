"""Precisions: which products torch takes, and what bf16 leaves in float32."""

import copy

import numpy as np
import pytest
import torch
from tiny_algorithms import in_float32, make, make_batch

from dpg_cli import precision
from dpg_cli.precision import choose_products, is_large, prepare_product


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
    prepare_product(256, large=is_large(256, 256))
    assert torch.get_float32_matmul_precision() == chosen
    for small in ((10, 256, 256), (256, 17, 256), (256, 256, 6)):
        prepare_product(small[0], large=is_large(*small[1:]))
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


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_bfloat16_learns_and_never_from_weights_of_before(name):
    """The rounded copy of the parameters follows every step of the optimizers and of the targets."""
    algorithm = make(
        name, seeds=(0, 1), dtype=torch.float32, hidden_sizes=[64, 64], critic_lr=3e-3, products=torch.bfloat16
    )
    batch = in_float32(make_batch(size=64, members=2))
    losses = []
    for _ in range(100):
        losses.append(algorithm.update(batch).scalars["loss/critic"])
        for network, inputs in ((algorithm.actor, batch[:1]), (algorithm.critic, batch[:2])):
            for own in (network, getattr(algorithm, f"target_{type(network).__name__.lower()}")):
                with torch.no_grad():
                    assert torch.equal(own(*inputs), copy.deepcopy(own)(*inputs))
    assert (losses[-1] < 0.5 * losses[0]).all()


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_bfloat16_is_for_updates_alone(name):
    exact, rounded = (
        make(name, dtype=torch.float32, hidden_sizes=[64, 64], products=products)
        for products in (torch.float32, torch.bfloat16)
    )
    obs = np.random.default_rng(0).normal(size=(1, 500, 3)).astype(np.float32)
    for ask in ("act", "value"):
        np.testing.assert_array_equal(getattr(exact, ask)(obs), getattr(rounded, ask)(obs))
    batch = in_float32(make_batch())
    assert exact.update(batch).scalars["loss/critic"] != rounded.update(batch).scalars["loss/critic"]
    for network in ("actor", "critic", "target_actor", "target_critic"):
        assert all(tensor.dtype is torch.float32 for tensor in getattr(rounded, network).tensors().values())
