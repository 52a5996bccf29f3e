"""Random streams: one generator for each seed, purpose and index, so that no two share numbers.

A stream depends on nothing but its key. A seed therefore sees the same numbers whether it trains alone or
beside others, and an evaluation more or less changes nothing else.
"""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of what a seed means: never renumber them."""

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
    """The root of the stream `(seed, purpose, *index)`."""
    return np.random.SeedSequence([seed, int(purpose), *index])


def generator(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """A NumPy generator for the stream."""
    return np.random.Generator(np.random.PCG64(sequence(seed, purpose, *index)))


def torch_generator(seed: int, purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream, on `device`."""
    return torch.Generator(device).manual_seed(integer(seed, purpose))


def integer(seed: int, purpose: Purpose, *index: int) -> int:
    """A 31-bit integer for the stream, for interfaces that take nothing else (`env.reset(seed=...)`)."""
    return int(sequence(seed, purpose, *index).generate_state(1)[0] >> 1)
