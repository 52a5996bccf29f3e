"""Adam is torch's own."""

from types import SimpleNamespace

import pytest
import torch

from dpg_cli.adam import Adam


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_it_is_torchs_adam_bit_for_bit(weight_decay, dtype, in_pieces, monkeypatch):
    if in_pieces:  # as on a GPU
        monkeypatch.setattr(Adam, "_in_pieces", lambda self, tensor: torch.split(tensor, 300))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clearing_what_has_vanished_changes_no_parameter_and_leaves_nothing_subnormal(dtype):
    """Half of the units die early, a quarter comes to life again."""
    g = torch.Generator().manual_seed(0)
    ours = SimpleNamespace(flat=torch.randn(1000, generator=g, dtype=dtype))
    theirs = SimpleNamespace(flat=ours.flat.clone())
    cleared, plain = Adam(ours, 1e-3), Adam(theirs, 1e-3)
    plain.clear_vanished = lambda: None
    tiny = torch.finfo(dtype).tiny

    def subnormal(adam):
        return [int(((moment != 0) & (moment.abs() < tiny)).sum()) for moment in (adam.mean, adam.square)]

    steps = 9_000 if dtype is torch.float64 else 1_500
    for step in range(steps + 200):
        gradient = torch.randn(1000, generator=g, dtype=dtype)
        if step >= 50:
            gradient[: 500 if step < steps else 250] = 0
        for adam in (cleared, plain):
            adam.step(gradient)
        assert subnormal(cleared) == [0, 0], step
    assert subnormal(plain)[0] > 200
    assert torch.equal(ours.flat, theirs.flat)


def test_what_is_no_number_does_not_vanish():
    adam = Adam(SimpleNamespace(flat=torch.ones(2)), 1e-3)
    for _ in range(Adam.CLEARED_EVERY):
        adam.step(torch.tensor([torch.nan, 1.0]))
    assert adam.mean.isnan().tolist() == adam.square.isnan().tolist() == [True, False]


def test_an_adam_that_goes_on_clears_when_it_would_have():
    adam = Adam(SimpleNamespace(flat=torch.zeros(1)), 1e-3)
    adam.set_count(torch.tensor(130.0))
    adam.square.fill_(1e-35)
    cleared = []
    for _ in range(100):
        adam.step(torch.zeros(1))
        cleared.append(adam.square.item() == 0)
    assert cleared == [False] * 69 + [True] * 31


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
