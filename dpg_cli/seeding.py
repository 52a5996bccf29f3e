"""Random streams: one generator for each seed, purpose and index, so that no two share numbers.

A stream depends on nothing but its key. A seed therefore sees the same numbers whether it trains alone or
beside others, and additional evaluations change nothing else.
"""

from enum import IntEnum

import numpy as np
import torch

CPU_STATE = torch.Generator().get_state().numel()  # bytes of a generator's state
CUDA_STATE = 16  # bytes: its seed and its offset


class Purpose(IntEnum):
    """What a stream is for. The numbers determine the streams of a seed: never renumber them."""

    NETWORKS = 0
    ENVIRONMENT = 1
    RANDOM_ACTION = 2
    NOISE = 3
    REPLAY = 4
    ALGORITHM = 5
    EVALUATION = 6
    TEST = 7
    GLOBAL = 8


def sequence(seed: int, purpose: Purpose, *index: int) -> np.random.SeedSequence:
    """The seed sequence of the stream `(seed, purpose, *index)`."""
    return np.random.SeedSequence([seed, int(purpose), *index])


def generator(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """A NumPy generator for the stream."""
    return np.random.Generator(np.random.PCG64(sequence(seed, purpose, *index)))


def torch_generator(seed: int, purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream, on `device`."""
    return torch.Generator(device).manual_seed(integer(seed, purpose))


def restore_generator(generator: torch.Generator, state: torch.Tensor, count: int) -> None:
    """Put a torch generator into a stored state of its stream.

    A state from another kind of device cannot be used. The generator then restarts from its own seed and `count`, so
    that it repeats no number.

    Raises:
        TypeError, RuntimeError: not the state of a generator.
    """
    devices = {CPU_STATE: "cpu", CUDA_STATE: "cuda"}
    if devices.get(state.numel(), generator.device.type) == generator.device.type:
        generator.set_state(state)
    else:
        fresh = np.random.SeedSequence([generator.initial_seed(), count])
        generator.manual_seed(int(fresh.generate_state(1)[0] >> 1))


def integer(seed: int, purpose: Purpose, *index: int) -> int:
    """A 31-bit integer for the stream, for interfaces that take nothing else (`env.reset(seed=...)`)."""
    return int(sequence(seed, purpose, *index).generate_state(1)[0] >> 1)
