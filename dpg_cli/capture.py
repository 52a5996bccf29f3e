"""Capture work on a device once and replay it, as a CUDA graph or as its stand-in on a CPU.

A replay uses the same memory every time. So captured work takes no arguments and returns nothing. It reads and writes
permanent tensors in place, and may not copy a number to the host.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpg_cli.errors import CompileError, compiler_error

P = ParamSpec("P")
T = TypeVar("T")
WARM_UP = 3  # runs before a capture, in which libraries create handles and the compiler compiles
TO_THE_HOST = {"_local_scalar_dense", "_unique2", "allclose", "bincount", "equal", "is_nonzero", "nonzero"}
INDEXING = {"index", "index_put", "index_put_", "masked_select"}  # with a mask, they count its true elements
INSTALL_COMPILER = "install one (Debian: apt install g++ python3-dev; macOS: xcode-select --install)"
MISSING = ("No such file", "not found", "Python.h", "cc1plus")  # in an error, of the compiler or a header


class Event(Protocol):
    """A point in a device's work."""

    def record(self) -> None:
        """Place the point after all work given to the device so far."""

    def synchronize(self) -> None:
        """Wait until the device has reached the point."""


class Static(Protocol):
    """An object whose tensors graphs use."""

    def static_tensors(self) -> list[Tensor]:
        """Its permanent tensors."""


class CaptureError(Exception):
    """The captured work could not be replayed on a GPU."""


def capture(
    function: Callable[[], object], inputs: Sequence[Tensor], generators: Sequence[torch.Generator] = ()
) -> Callable[[], None]:
    """Capture one run of a function.

    Args:
        function: has run before, in `warm_up`.
        inputs: every tensor that it uses and does not create, all on one device.
        generators: every generator that it draws from; a replay advances them as a run does.

    Returns:
        A function that replays the run. On a CPU it raises `CaptureError` if the run uses other tensors or generators,
        or copies a number to the host.
    """
    kind = Graph if inputs[0].is_cuda else StandIn
    return kind(function, inputs, generators).replay


def warm_up(function: Callable[[], object], device: torch.device) -> None:
    """Run a function as is necessary before it is captured."""
    if device.type == "cpu":
        function()
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    current.wait_stream(stream)


def compiled_and_captured(
    function: Callable[[], object],
    used: Sequence[Static],
    device: torch.device,
    *,
    compiled: bool,
    generators: Sequence[torch.Generator] = (),
) -> Callable[[], None]:
    """Warm up or compile a function, and capture it.

    Args:
        function: has not run before; of outside tensors, it uses only the static tensors of `used`.
        used: the objects that it uses.
        device: of their tensors.
        compiled: whether to compile it first.
        generators: as for `capture`.

    Returns:
        A function that replays it, as for `capture`.

    Raises:
        CompileError: it cannot be compiled.
    """
    if compiled:
        function = compile_for(device, function)
    else:
        warm_up(function, device)
    return capture(function, [tensor for part in used for tensor in part.static_tensors()], generators)


def compile_for(device: torch.device, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[P, T]:
    """Compile a function by running it.

    Args:
        device: of its tensors.
        function: to compile.
        args: to run it with.
        kwargs: the same.

    Raises:
        CompileError: it cannot be compiled, for example because a compiler is missing.
    """
    try:
        import torch._dynamo  # here, since it takes a second to import
        from torch._dynamo.exc import TorchDynamoException

        if hasattr(torch._dynamo.config, "trace_autograd_ops"):  # for `Algorithm.descend`; older versions lack it
            torch._dynamo.config.trace_autograd_ops = True
        compiled: Callable[P, T] = torch.compile(function, fullgraph=True, dynamic=False)
        try:
            warm_up(functools.partial(compiled, *args, **kwargs), device)
        except TorchDynamoException as error:
            raise CompileError(f"compile=true: {_what_failed(error)} use compile=false") from error
    except OSError as error:
        why = f"torch.compile cannot write its cache ({error})"
        raise CompileError(f"compile=true: {why}; set TORCHINDUCTOR_CACHE_DIR, or use compile=false") from error
    return compiled


def _what_failed(error: Exception) -> str:
    """Why torch could not compile, and what to do, to be followed by an alternative."""
    inner = getattr(error, "inner_exception", error)
    reason = str(inner).partition("Set TORCHDYNAMO_VERBOSE")[0]
    match type(inner).__name__:
        case "InvalidCxxCompiler":
            own = f"CXX={os.environ['CXX']} is no working" if "CXX" in os.environ else "torch.compile needs a"
            return f"{own} C++ compiler; {INSTALL_COMPILER}, or"
        case "CppCompileError":
            line = compiler_error(reason.partition("Output:")[2])
            failed = f"the C++ compiler failed ({line});"
            return f"{failed} {INSTALL_COMPILER}, or" if any(sign in line for sign in MISSING) else failed
    return f"torch.compile failed ({type(inner).__name__}: {reason.strip()}); report it, or"


class Graph:
    """A CUDA graph.

    Args:
        function: to capture. It is kept alive, since the graph runs the kernels that were compiled for it.
        inputs: as for `capture`.
        generators: as for `capture`.
    """

    def __init__(self, function: Callable[[], object], inputs: Sequence[Tensor], generators: Sequence[torch.Generator]):
        self._function, self._graph, device = function, torch.cuda.CUDAGraph(), inputs[0].device
        for generator in generators:
            self._graph.register_generator_state(generator)
        # A new stream: torch's default one belongs to the device of the first capture.
        with torch.cuda.graph(self._graph, stream=torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            function()

    def replay(self) -> None:
        """One run."""
        self._graph.replay()


class StandIn:
    """A graph's stand-in on a CPU: a replay runs the function again, and fails if a graph would be wrong.

    Args:
        function: to run.
        inputs: every tensor that it may use and does not create.
        generators: every generator that it may draw from.
    """

    def __init__(self, function: Callable[[], object], inputs: Sequence[Tensor], generators: Sequence[torch.Generator]):
        self._function, self._inputs, self._generators = function, inputs, generators

    def replay(self) -> None:
        """One run."""
        with _OnlyOwn(self._inputs, self._generators):
            self._function()


class _OnlyOwn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets operations use only the given tensors and generators, and tensors that they created."""

    def __init__(self, tensors: Sequence[Tensor], generators: Sequence[torch.Generator]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = {generator._cdata for generator in generators}  # type: ignore[attr-defined]
        self._storages = {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in TO_THE_HOST:
            raise CaptureError(f"{func} copies a number to the host")
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws and getattr((kwargs or {}).get("generator"), "_cdata", None) not in self._generators:
            raise CaptureError(f"{func} draws from a generator that is not registered")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and func.overloadpacket.__name__ in INDEXING and tensor.dtype is torch.bool:
                raise CaptureError(f"{func} copies a number to the host")
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._storages:
                raise CaptureError(f"{func} uses a tensor from outside, of shape {tuple(tensor.shape)}")
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = storage
        return out


def new_event(device: torch.device) -> Event:
    """An event of a device's current stream. On a CPU, work is done at once, so the event does nothing."""
    return _OnGpu(device) if device.type == "cuda" else _Passed()


class _OnGpu:
    def __init__(self, device: torch.device):
        self._event, self._stream = torch.cuda.Event(), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record(self._stream)

    def synchronize(self) -> None:
        self._event.synchronize()


class _Passed:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass
