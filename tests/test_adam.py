"""Adam is torch's own."""

from types import SimpleNamespace

import pytest
import torch

from dpg_cli.adam import Adam


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs_adam_bit_for_bit(weight_decay, dtype):
    g = torch.Generator().manual_seed(0)
    ours = SimpleNamespace(flat=torch.randn(1000, generator=g, dtype=dtype))
    theirs = ours.flat.clone().requires_grad_()
    adam = Adam(ours, 1e-3, weight_decay)
    reference = torch.optim.Adam([theirs], lr=1e-3, weight_decay=weight_decay, fused=True)
    for _ in range(20):
        theirs.grad = torch.randn(1000, generator=g, dtype=dtype)
        adam.step(theirs.grad)
        reference.step()
        assert torch.equal(ours.flat, theirs)


def test_by_hand():
    """Kingma & Ba 2015, Algorithm 1, two steps of one number."""
    network = SimpleNamespace(flat=torch.tensor([1.0], dtype=torch.float64))
    adam = Adam(network, 0.1)
    mean = square = 0.0
    expected = 1.0
    for count, gradient in enumerate([0.5, -2.0], start=1):
        adam.step(torch.tensor([gradient], dtype=torch.float64))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected -= 0.1 * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)) ** 0.5 + 1e-8)
        assert network.flat.item() == pytest.approx(expected, rel=1e-12)
