"""Capture work on a device once and replay it: a CUDA graph, and its stand-in on a CPU.

What is captured uses the same memory at every replay. So it takes no arguments and returns nothing: it reads and writes
tensors in place that outlive it, and no number of it may come to the host.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpg_cli.errors import UserError

WARM_UP = 3  # runs before a capture: libraries make their handles, and a compiler compiles
TO_THE_HOST = {"_local_scalar_dense", "_unique2", "allclose", "bincount", "equal", "is_nonzero", "nonzero"}
INDEXING = {"index", "index_put", "index_put_", "masked_select"}  # which count where a mask is true


class Event(Protocol):
    """A point in a device's work."""

    def record(self) -> None:
        """The point is after all work that the device was given so far."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""


class Static(Protocol):
    """What graphs use."""

    def static_tensors(self) -> list[Tensor]:
        """Its tensors that outlive a replay."""


class CaptureError(Exception):
    """What was captured would not replay on a GPU."""


def capture(
    function: Callable[[], object], inputs: Sequence[Tensor], generators: Sequence[torch.Generator] = ()
) -> Callable[[], None]:
    """Capture one run of a function.

    Args:
        function: has run before, by `warm_up`.
        inputs: every tensor that it uses and does not make itself, all on one device.
        generators: all those that it draws from; a replay moves them on as a run does.

    Returns:
        What replays it.

    Raises:
        CaptureError: on a CPU at a replay, a tensor from outside is used, or a number comes to the host.
    """
    kind = Graph if inputs[0].is_cuda else StandIn
    return kind(function, inputs, generators).replay


def warm_up(function: Callable[[], object], device: torch.device) -> None:
    """Run a function as it must have run before it is captured."""
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
    """What replays a function that uses the static tensors of `used`, and no others.

    Args:
        function: has not run before.
        used: all that it uses and does not make itself.
        device: of all of that.
        compiled: whether to compile it first.
        generators: as for `capture`.

    Raises:
        UserError: it cannot be compiled.
    """
    if compiled:
        function = compile_for(device, function)
    else:
        warm_up(function, device)
    return capture(function, [tensor for part in used for tensor in part.static_tensors()], generators)


def compile_for(device: torch.device, function: Callable[[], object]) -> Callable[[], object]:
    """Compile a function by running it.

    Raises:
        UserError: it cannot be compiled, as where a C compiler is missing.
    """
    from torch._dynamo.exc import TorchDynamoException  # here, since it takes a second to import

    compiled: Callable[[], object] = torch.compile(function, fullgraph=True, dynamic=False)
    try:
        warm_up(compiled, device)
    except TorchDynamoException as error:
        raise UserError(f"compile=true: compilation failed ({error}); use compile=false") from error
    return compiled


class Graph:
    """A CUDA graph.

    Args:
        function: to capture; it is kept, since the graph runs the kernels that a compiler made for it.
        inputs: as for `capture`.
        generators: as for `capture`.
    """

    def __init__(self, function: Callable[[], object], inputs: Sequence[Tensor], generators: Sequence[torch.Generator]):
        self._function, self._graph, device = function, torch.cuda.CUDAGraph(), inputs[0].device
        for generator in generators:
            self._graph.register_generator_state(generator)
        # A stream of its own: torch's default one belongs to the device that was captured on first.
        with torch.cuda.graph(self._graph, stream=torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            function()

    def replay(self) -> None:
        """One run."""
        self._graph.replay()


class StandIn:
    """What a graph does, on a CPU: it runs the function again, and fails where a graph would be wrong.

    Args:
        function: to run.
        inputs: every tensor that it may use and does not make itself.
        generators: those that it may draw from.
    """

    def __init__(self, function: Callable[[], object], inputs: Sequence[Tensor], generators: Sequence[torch.Generator]):
        self._function, self._inputs, self._generators = function, inputs, generators

    def replay(self) -> None:
        """One run."""
        with _OnlyOwn(self._inputs, self._generators):
            self._function()


class _OnlyOwn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets operations use only the memory of given tensors, what they have made of it, and given generators."""

    def __init__(self, tensors: Sequence[Tensor], generators: Sequence[torch.Generator]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = {generator._cdata for generator in generators}  # type: ignore[attr-defined]
        self._storages = {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in TO_THE_HOST:
            raise CaptureError(f"{func} brings a number to the host")
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws and getattr((kwargs or {}).get("generator"), "_cdata", None) not in self._generators:
            raise CaptureError(f"{func} draws from a generator that is not registered")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and func.overloadpacket.__name__ in INDEXING and tensor.dtype is torch.bool:
                raise CaptureError(f"{func} brings a number to the host")
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._storages:
                raise CaptureError(f"{func} uses a tensor from outside, of shape {tuple(tensor.shape)}")
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = storage
        return out


def new_event(device: torch.device) -> Event:
    """An event of a device's current stream; on a CPU all work is done when it is given."""
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
