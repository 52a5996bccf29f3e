"""The algorithms by name. Every module of this folder is imported, so that its algorithm registers itself."""

import importlib
import pkgutil

from dpg_cli.algorithms.base import REGISTRY, Algorithm, Batch, Learned

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

ALGORITHMS: dict[str, type[Algorithm]] = dict(sorted(REGISTRY.items()))

__all__ = ["ALGORITHMS", "Algorithm", "Batch", "Learned"]
