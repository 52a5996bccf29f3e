"""The state of a MuJoCo simulation as plain data."""

import hashlib
import inspect
from typing import Any

import numpy as np


def is_a(value: object, name: str) -> bool:
    """Whether a value is MuJoCo's class of a name. MuJoCo need not be installed."""
    return type(value).__name__ == name and type(value).__module__.startswith("mujoco")


def model_hash(model: Any) -> str:
    """Identifies a model."""
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return hashlib.sha256(buffer.tobytes()).hexdigest()


def get_data(data: Any) -> dict[str, Any]:
    """MuJoCo's data: the state that integration needs, and by name every flag and array of floats or booleans.

    Arrays of integers are left out: they are indices into other arrays, which MuJoCo recomputes, and memory addresses.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(data.model, kind))
    mujoco.mj_getState(data.model, data, integration, kind)
    fields = {name: value for name, value in inspect.getmembers(data) if not name.startswith("_")}
    return {
        "version": mujoco.__version__,
        "integration": integration,
        "arrays": {name: value.copy() for name, value in fields.items() if _is_quantity(value)},
        "flags": {name: bool(value) for name, value in fields.items() if name.startswith("flg_")},
    }


def set_data(data: Any, stored: dict[str, Any]) -> str | None:
    """Restore what `get_data` returned; why that is impossible, else None."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    if stored["integration"].shape != (mujoco.mj_stateSize(data.model, kind),):
        return "the saved state has another size"
    mujoco.mj_setState(data.model, data, stored["integration"], kind)
    mujoco.mj_forward(data.model, data)  # sets the numbers of contacts and constraints
    own = get_data(data)
    for name in stored["arrays"].keys() & own["arrays"].keys():
        current, value = getattr(data, name), stored["arrays"][name]
        if (current.shape, current.dtype) == (value.shape, value.dtype) and current.flags.writeable:
            current[...] = value
    for name in stored["flags"].keys() & own["flags"].keys():
        setattr(data, name, bool(stored["flags"][name]))
    return None


def _is_quantity(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fb"
