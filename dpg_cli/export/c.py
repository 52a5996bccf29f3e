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

from dpg_cli.errors import ExportError, UserError, compiler_error
from dpg_cli.export.box import box_in_float32
from dpg_cli.layers import (
    AvgL1Norm,
    Concatenate,
    Dense,
    Elu,
    Layer,
    LayerNorm,
    Normalize,
    Plain,
    Relu,
    Residual,
    Tanh,
    plain_layers,
)
from dpg_cli.policy import Policy
from dpg_cli.spaces import layout

COMPILERS = ("cc", "gcc", "clang")
COLUMNS = 8  # numbers on a line
SECONDS = 300  # for a compiler
LARGEST = float(np.finfo(np.float32).max)  # a clip that clips no float

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
    LayerNorm: """\
/* Heron's method on x scaled by powers of 4 to [1, 4), relative error below 2e-7, without libm. */
static float NAME_sqrt(float x) {
    float scale = 1.0f;
    if (!(x > 0.0f && x <= 3.40282347e+38f)) return x; /* 0, infinity, NaN */
    for (int k = 0; k < 64 && x >= 4.0f; k++) {
        x *= 0.25f;
        scale *= 2.0f;
    }
    for (int k = 0; k < 75 && x < 1.0f; k++) {
        x *= 4.0f;
        scale *= 0.5f;
    }
    float root = 0.69f + 0.34f * x; /* to 4%, which three steps reduce to rounding */
    for (int k = 0; k < 3; k++) root = 0.5f * (root + x / root);
    return root * scale;
}

static void NAME_layer_norm(
    const float *weight, const float *bias, float epsilon, const float *in, float *out, int size) {
    float first = 0.0f, rest = 0.0f, squares = 0.0f;
    for (int i = 0; i < size; i++) first += in[i];
    first /= (float)size;
    for (int i = 0; i < size; i++) rest += in[i] - first; /* what rounding left out of the mean */
    const float mean = first + rest / (float)size;
    for (int i = 0; i < size; i++) squares += (in[i] - mean) * (in[i] - mean);
    const float std = NAME_sqrt(squares / (float)size + epsilon);
    for (int i = 0; i < size; i++) out[i] = (in[i] - mean) / std * weight[i] + bias[i];
}
""",
    AvgL1Norm: """\
static void NAME_avg_l1_norm(float epsilon, const float *in, float *out, int size) {
    float sum = 0.0f;
    for (int i = 0; i < size; i++) sum += in[i] < 0.0f ? -in[i] : in[i];
    sum /= (float)size;
    if (sum < epsilon) sum = epsilon;
    for (int i = 0; i < size; i++) out[i] = in[i] / sum;
}
""",
    Residual: """\
static void NAME_add(const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) out[i] += in[i];
}
""",
    Concatenate: """\
static void NAME_copy(const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) out[i] = in[i];
}
""",
    Relu: """\
static void NAME_relu(const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) out[i] = in[i] < 0.0f ? 0.0f : in[i];
}
""",
    Elu: """\
/* exp(x) - 1 = x / (r - x / 2), where tanh(x / 2) = (x / 2) / r and r is Lambert's continued fraction
 * 1 + y^2 / (3 + y^2 / (5 + ...)) of y = x / 2: absolute error below 2e-7, without libm. */
static void NAME_elu(const float *in, float *out, int size) {
    for (int i = 0; i < size; i++) {
        const float x = in[i], half = 0.5f * x;
        float rest = 25.0f;
        for (int odd = 23; odd > 0; odd -= 2) rest = (float)odd + half * half / rest;
        out[i] = x > 0.0f ? x : x < -16.0f ? -1.0f : x / (rest - half);
    }
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
    body = _Body(stem, policy.obs_dim)
    for layer in policy.layers:
        body.add(layer)
    constants = body.constants | box_in_float32(policy)._asdict()
    kinds: set[type[Layer]] = {type(layer) for layer in (*policy.layers, *plain_layers(policy.layers))}
    return (
        FILE.replace("NAME", stem)
        .format(
            title=_comment(f"Policy for {policy.env_id} ({metadata['algorithm']}, step {policy.step})"),
            origin=_comment(f"exported by dpg-cli {metadata['dpg_cli']} from {metadata['run']}"),
            observation_space=_comment(policy.observation_space),
            action_space=_comment(policy.action_space),
            order="\n".join(_order(policy)),
            bytes=4 * sum(values.size for values in constants.values()),
            stack=4 * sum(body.widths.values()),
            obs_dim=policy.obs_dim,
            action_dim=body.size,
            constants="\n".join(_constant(f"{stem}_{name}", values) for name, values in constants.items()),
            helpers="\n".join(code.replace("NAME", stem) for kind, code in HELPERS.items() if kind in kinds),
            buffers=", ".join(f"{name}[{width}]" for name, width in body.widths.items()),
            calls="\n".join(f"    {stem}_{call};" for call in body.calls),
            result=body.source,
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
    """Compile a program that includes the header; returns its error, or None."""
    (folder / "driver.c").write_text(driver)
    command = [compiler, "-std=c99", "-O2", "-o", str(folder / "driver"), str(folder / "driver.c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return compiler_error(done.stderr) if done.returncode else None


class _Body:
    """The calls of a policy's function, and the constants and buffers that they use.

    A layer is applied in place unless its input must stay: the observation, the input of a residual until its sum, and
    that of branches until the last.

    Args:
        stem: of all names.
        obs_dim: size of an observation.
    """

    def __init__(self, stem: str, obs_dim: int):
        self.stem = stem
        self.constants: dict[str, np.ndarray] = {}
        self.calls: list[str] = []
        self.widths: dict[str, int] = {}  # of the buffers
        self.source, self.size = "obs", obs_dim  # what the next layer takes
        self._layers = 0
        self._kept: str | None = None

    def add(self, layer: Layer) -> None:
        """Append a layer."""
        if isinstance(layer, Residual):
            self._kept = self.source
            for inner in layer.layers:
                self._add(inner)
            self.calls.append(f"add({self._kept}, {self.source}, {self.size})")
            self._kept = None
        elif isinstance(layer, Concatenate):
            self._add_branches(layer)
        else:
            self._add(layer)

    def _add_branches(self, layer: Concatenate) -> None:
        self._kept, inputs, joined = self.source, self.size, 0
        target = "e" if self.source == "d" else "d"
        for branch in layer.branches:
            self.source, self.size = self._kept, inputs
            for inner in branch:
                self._add(inner)
            self.calls.append(f"copy({self.source}, {target} + {joined}, {self.size})")
            joined += self.size
        self.source, self.size, self._kept = target, joined, None
        self.widths[target] = max(self.widths.get(target, 0), joined)

    def _add(self, layer: Plain) -> None:
        source, size, number = self.source, self.size, self._layers
        self._layers += 1
        in_place = not isinstance(layer, Dense) and source not in ("obs", self._kept)
        target = source if in_place else next(name for name in "abc" if name not in (source, self._kept))
        if isinstance(layer, Dense):
            names = self._constants(number, weight=layer.weight.T, bias=layer.bias)
            self.size = len(layer.bias)
            self.calls.append(f"dense({names}, {source}, {size}, {target}, {self.size})")
        elif isinstance(layer, Normalize):
            names = self._constants(number, mean=layer.mean, std=layer.std)
            clip = _literal(LARGEST if layer.clip is None else layer.clip)
            self.calls.append(f"normalize({names}, {clip}, {source}, {target}, {size})")
        elif isinstance(layer, LayerNorm):
            names = self._constants(number, weight=layer.weight, bias=layer.bias)
            self.calls.append(f"layer_norm({names}, {_literal(layer.epsilon)}, {source}, {target}, {size})")
        elif isinstance(layer, AvgL1Norm):
            self.calls.append(f"avg_l1_norm({_literal(layer.epsilon)}, {source}, {target}, {size})")
        else:
            self.calls.append(f"{type(layer).__name__.lower()}({source}, {target}, {size})")
        self.widths[target] = max(self.widths.get(target, 0), self.size)
        self.source = target

    def _constants(self, number: int, **values: np.ndarray) -> str:
        """Arrays of the layer with this number; returns their names as arguments."""
        named = {f"{number}_{name}": array for name, array in values.items()}
        self.constants |= named
        return ", ".join(f"{self.stem}_{name}" for name in named)


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
