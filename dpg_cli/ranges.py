"""Ranges of hyperparameters: written into a class's fields, checked by `config/`."""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Count = Annotated[int, Interval(ge=1, le=10**15)]  # larger numbers are not exact in floats and file names
CountOrZero = Annotated[int, Interval(ge=0, le=10**15)]
WindowSteps = Annotated[int, Interval(ge=1, le=1000)]  # an update reads that many rows for each transition of a batch
Atoms = Annotated[int, Interval(ge=2, le=1000)]  # a projection takes their square for each transition of a batch
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
SpectralExponent = Annotated[float, Interval(ge=0, le=4)]
