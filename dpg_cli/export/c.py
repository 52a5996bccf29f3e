"""C99 without dependencies: one header with the weights, for a microcontroller."""

import itertools
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpg_cli.errors import ExportError, UserError, first_line
from dpg_cli.export.box import box_in_float32
from dpg_cli.layers import Dense, Normalize, Relu, Tanh
from dpg_cli.policy import Policy
from dpg_cli.spaces import layout

COMPILERS = ("cc", "gcc", "clang")
COLUMNS = 8  # numbers on a line
SECONDS = 300  # for a compiler

HELPERS = {  # an int may have 16 bits: it counts the numbers of one layer, and is never an index of its weights
    Dense: """\
static void NAME_dense(const float *weight, const float *bias, const float *in, int inputs, float *out, int outputs) {
    for (int j = 0; j < outputs; j++) {
        float sum = bias[j];
        for (int i = 0; i < inputs; i++) sum += *weight++ * in[i];
        out[j] = sum;
    }
}
""",
    Normalize: """\
static void NAME_normalize(const float *mean, const float *std, float clip, const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) {
        const float x = (in[i] - mean[i]) / std[i];
        out[i] = x < -clip ? -clip : x > clip ? clip : x;
    }
}
""",
    Relu: """\
static void NAME_relu(const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) out[i] = in[i] < 0.0f ? 0.0f : in[i];
}
""",
    Tanh: """\
/* Lambert's continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))), absolute error below 3e-7, without libm. */
static void NAME_tanh(const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) {
        const float x = in[i];
        float rest = 25.0f;
        for (int odd = 23; odd > 0; odd -= 2) rest = (float)odd + x * x / rest;
        out[i] = x > 8.0f ? 1.0f : x < -8.0f ? -1.0f : x / rest;
    }
}
""",
}

FILE = """\
/* {title},
 * {origin}.
 *
 * void NAME_act(const float *obs, float *action);
 *
 * Observation space: {observation_space}
 * Action space: {action_space}
{order}
 *
 * {bytes:,} bytes of constants, {stack:,} bytes of stack. No heap, no library.
 * Include this file in one source file, and declare the function elsewhere. NaN in obs gives NaN in action.
 */
#ifndef DPG_CLI_NAME_H
#define DPG_CLI_NAME_H

#define NAME_OBS_DIM {obs_dim}
#define NAME_ACTION_DIM {action_dim}

#ifdef __cplusplus
extern "C" {{
#endif

void NAME_act(const float *obs, float *action);

{constants}

{helpers}
void NAME_act(const float *obs, float *action) {{
    float {buffers};
{calls}
    for (int i = 0; i < NAME_ACTION_DIM; i++) {{
        const float x = ({result}[i] + 1.0f) * NAME_half_range[i] + NAME_low[i];
        action[i] = x < NAME_low[i] ? NAME_low[i] : x > NAME_high[i] ? NAME_high[i] : x;
    }}
}}

#ifdef __cplusplus
}}
#endif

#endif
"""

DRIVER = """\
#include <stdio.h>
#include "exported.h"
int main(void) {
    static float obs[NAME_OBS_DIM], action[NAME_ACTION_DIM];
    while (fread(obs, sizeof *obs, NAME_OBS_DIM, stdin) == NAME_OBS_DIM) {
        NAME_act(obs, action);
        fwrite(action, sizeof *action, NAME_ACTION_DIM, stdout);
    }
    return 0;
}
"""


def check_name(path: Path) -> None:
    """Check that a file's stem can begin the names in it.

    Raises:
        UserError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", path.stem):
        better = re.sub(r"\W|^(?=[\d_])", "_", path.stem, flags=re.ASCII).lstrip("_") or "policy"
        if not better[0].isalpha():
            better = f"policy_{better}"
        raise UserError(
            f"out={path}: the C function is called {path.stem}_act, so the name may hold letters, digits and _ only, "
            f"and begins with a letter; {better}.h would do"
        )


def write(policy: Policy, metadata: Mapping[str, Any], stem: str) -> bytes:
    """The header: `void <stem>_act(const float *obs, float *action)` and the weights.

    Raises:
        ExportError: a number is beyond the range of float.
    """
    constants: dict[str, np.ndarray] = {}
    calls, widths = [], dict[str, int]()  # of the buffers that the layers write to, a and b
    source, size = "obs", policy.obs_dim
    for i, layer in enumerate(policy.layers):
        target = "a" if source == "obs" else source  # in place
        if isinstance(layer, Dense):
            target = "b" if source == "a" else "a"
            constants |= {f"{i}_weight": layer.weight.T, f"{i}_bias": layer.bias}
            calls.append(f"dense({stem}_{i}_weight, {stem}_{i}_bias, {source}, {size}, {target}, {len(layer.bias)})")
            size = len(layer.bias)
        elif isinstance(layer, Normalize):
            constants |= {f"{i}_mean": layer.mean, f"{i}_std": layer.std}
            numbers = f"{stem}_{i}_mean, {stem}_{i}_std, {_literal(layer.clip)}"
            calls.append(f"normalize({numbers}, {source}, {target}, {size})")
        else:
            calls.append(f"{'relu' if isinstance(layer, Relu) else 'tanh'}({source}, {target}, {size})")
        widths[target] = max(widths.get(target, 0), size)
        source = target
    constants |= box_in_float32(policy)._asdict()
    kinds = {type(layer) for layer in policy.layers}
    return (
        FILE.replace("NAME", stem)
        .format(
            title=_comment(f"Policy for {policy.env_id} ({metadata['algorithm']}, step {policy.step})"),
            origin=_comment(f"exported by dpg-cli {metadata['dpg_cli']} from {metadata['run']}"),
            observation_space=_comment(policy.observation_space),
            action_space=_comment(policy.action_space),
            order="\n".join(_order(policy)),
            bytes=4 * sum(values.size for values in constants.values()),
            stack=4 * sum(widths.values()),
            obs_dim=policy.obs_dim,
            action_dim=size,
            constants="\n".join(_constant(f"{stem}_{name}", values) for name, values in constants.items()),
            helpers="\n".join(code.replace("NAME", stem) for kind, code in HELPERS.items() if kind in kinds),
            buffers=", ".join(f"{name}[{width}]" for name, width in widths.items()),
            calls="\n".join(f"    {stem}_{call};" for call in calls),
            result=source,
        )
        .encode("ascii")
    )


def run(path: Path, obs: np.ndarray, stem: str) -> np.ndarray | None:
    """The actions of a header, compiled here; None without a compiler whose programs run.

    Raises:
        ExportError: it does not compile.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(path, folder / "exported.h")
        if (error := _compile(compiler, folder, DRIVER.replace("NAME", stem))) is not None:
            if _compile(compiler, folder, "#include <stdio.h>\nint main(void) { return 0; }\n") is not None:
                return None  # not a working compiler, such as one without the headers of the C library
            raise ExportError(f"{compiler} rejects the header: {error}")
        done = subprocess.run(
            [folder / "driver"], input=obs.tobytes(), capture_output=True, timeout=SECONDS, check=True
        )
    return np.frombuffer(done.stdout, np.float32).reshape(len(obs), -1)


def _compile(compiler: str, folder: Path, driver: str) -> str | None:
    """Compile a program that includes the header; returns the first error, or None."""
    (folder / "driver.c").write_text(driver)
    command = [compiler, "-std=c99", "-O2", "-o", str(folder / "driver"), str(folder / "driver.c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return first_line(done.stderr) if done.returncode else None


def _order(policy: Policy) -> Iterator[str]:
    """Comment lines that say what each number of an observation and of an action is."""
    low, high, _ = box_in_float32(policy)
    ranges = [f"from {first:.9g} to {last:.9g}" for first, last in zip(low.tolist(), high.tolist(), strict=True)]
    actions = [(text, len(list(equal))) for text, equal in itertools.groupby(ranges)]
    for name, parts in (("obs", layout(policy.observation_space)), ("action", actions)):
        first = 0
        for text, size in parts:
            last = f" to {name}[{first + size - 1}]" if size > 1 else ""
            yield f" *   {name}[{first}]{last}: {_comment(text)}"
            first += size


def _comment(text: object) -> str:
    """Text for a comment. It may come from a stranger, and must not end the comment."""
    return re.sub(r"[^ -~]|[*\\?]", "_", " ".join(str(text).split()))


def _constant(name: str, values: np.ndarray) -> str:
    literals = [_literal(value) for value in values.ravel().tolist()]
    lines = [", ".join(literals[i : i + COLUMNS]) for i in range(0, len(literals), COLUMNS)]
    body = ",\n    ".join(lines)
    return f"static const float {name}[{len(literals)}] = {{\n    {body}\n}};"


def _literal(value: float) -> str:
    """A C literal of the nearest float, which reads back as exactly that."""
    nearest = float(np.float32(value))
    if not math.isfinite(nearest):
        raise ExportError(f"a number of the policy, {value:g}, is beyond the range of float")
    text = f"{nearest:.9g}"
    return f"{text if '.' in text or 'e' in text else text + '.0'}f"
