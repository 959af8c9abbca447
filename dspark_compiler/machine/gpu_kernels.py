"""Kernels for a GPU: compiled by one process, run and timed by another, in graphs as the runtime replays them.

What is here runs in processes of its own: nvcc takes seconds, and a kernel that goes wrong takes its process' GPU with
it.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from dspark_compiler.artifact import TensorInfo
from dspark_compiler.errors import LoweringError
from dspark_compiler.machine.gpu_toolchains import context_of, ready_to_compile
from dspark_compiler.runtime.gpu_context import GpuContext
from dspark_compiler.runtime.gpu_memory import Slab
from dspark_compiler.runtime.library import import_tvm_ffi
from dspark_compiler.schedules.bench import Build, Run, Sample

_COLD_BYTES = 160 << 20  # rotated through: well over the L2 of any GPU so far
_LEAST_CALLS = 4  # of a graph, so that its launch does not count
_ROUNDS = 15


@dataclass(frozen=True)
class Library:
    """Where a compiled kernel is, or why it is nowhere."""

    path: str = ""
    function: str = ""
    failure: str | None = None
    kind: str = "cuda"  # of the target


def compile_kernels(builds: Sequence[Build], target: Any, start: str) -> list[Library]:
    """Compiles kernels together, since nvcc reads its headers once then; one by one if that fails.

    Args:
        builds: make the kernels.
        target: the tvm.target.Target.
        start: of the paths of libraries.
    """
    functions: dict[int, tvm.tirx.PrimFunc] = {}
    libraries = [Library() for _ in builds]
    for i, build in enumerate(builds):
        try:
            functions[i] = build()
        except (RuntimeError, ValueError) as error:
            libraries[i] = Library(failure=f"cannot be made: {reason(error)}")
    try:
        together = _compile(functions, target, f"{start}.so")
    except (RuntimeError, ValueError, LoweringError):
        together = {}
        for i, function in functions.items():
            try:
                together |= _compile({i: function}, target, f"{start}-{i}.so")
            except (RuntimeError, ValueError, LoweringError) as error:
                together[i] = Library(failure=f"does not compile: {reason(error)}")
    return [together.get(i, library) for i, library in enumerate(libraries)]


def _compile(functions: dict[int, tvm.tirx.PrimFunc], target: Any, path: str) -> dict[int, Library]:
    pipeline = ready_to_compile(target.kind.name)
    named = {i: f"kernel_{i}" for i in functions}
    module = tvm.IRModule({name: functions[i].with_attr("global_symbol", name) for i, name in named.items()})
    with target:
        tvm.compile(module, target=target, tir_pipeline=pipeline).export_library(path)
    return {i: Library(path, name, kind=target.kind.name) for i, name in named.items()}


def run_kernels(libraries: Sequence[Library], sample: Sample) -> list[Run]:
    """Runs each kernel once, then those that work in turns; see Bench.compare.

    Raises:
        DeviceError: a kernel has brought down the GPU's context, and this process is of no use any more.
    """
    kinds = {library.kind for library in libraries if library.failure is None}
    if not kinds:
        return [Run(failure=library.failure) for library in libraries]
    context = context_of(kinds.pop())
    memory = _Memory(context, sample)
    runs, working = [], []
    outputs: list[NDArray[Any]] = []
    with context.on_stream():
        for library in libraries:
            if library.failure is not None:
                runs.append(Run(failure=library.failure))
                continue
            try:
                function = import_tvm_ffi().load_module(str(Path(library.path).resolve()))[library.function]
                memory.clear()
                function(*memory.arguments[0])
            except (RuntimeError, OSError, AttributeError) as error:
                context.cuda.synchronize(context.stream)
                runs.append(Run(failure=f"does not run: {reason(error)}"))
                continue
            found = memory.output()
            # The same object, so that it is sent once.
            known = next((output for output in outputs if _same_bits(output, found)), found)
            outputs.append(known)
            working.append((len(runs), function))
            runs.append(Run(known))
        times = _times(context, [function for _, function in working], memory.arguments)
    for (i, _), seconds in zip(working, times, strict=True):
        runs[i] = Run(runs[i].output, seconds * 1e6)
    return runs


class _Memory:
    """A sample on the GPU: argument lists to rotate through, cold operands each time others."""

    def __init__(self, context: GpuContext, sample: Sample) -> None:
        cold = sum(operand.nbytes for operand in sample.operands if operand.cold)
        sets = -(-_COLD_BYTES // cold) if cold else 1
        described, names = {}, [[""] * len(sample.operands) for _ in range(sets)]
        for i, operand in enumerate(sample.operands):
            for turn in range(sets):
                names[turn][i] = f"{i}.{turn if operand.cold else 0}"
                described[names[turn][i]] = TensorInfo(operand.shape, str(operand.values.dtype))
        described["output"] = TensorInfo(sample.expected.shape, sample.dtype)
        self._context = context
        # Not every GPU reads memory it does not know.
        sent = max((min(operand.values.nbytes, operand.nbytes) for operand in sample.operands), default=0)
        self._staging = context.cuda.pinned(max(sent, sample.expected.size * np.dtype(sample.dtype).itemsize))
        self._slab = Slab(context.cuda, described, context.where)
        self._output = np.empty(sample.expected.shape, np.dtype(sample.dtype))
        for i, operand in enumerate(sample.operands):
            for name in dict.fromkeys(row[i] for row in names):
                self._fill(name, operand.values, operand.nbytes)
        context.cuda.synchronize(context.stream)
        tensors = self._slab.tensors
        self.arguments = [[*(tensors[name] for name in row), tensors["output"]] for row in names]

    def _fill(self, name: str, values: NDArray[Any], size: int) -> None:
        """Repeats ``values`` until they fill the tensor."""
        cuda, stream = self._context.cuda, self._context.stream
        address = self._slab.address + self._slab.offsets[name]
        filled = min(values.nbytes, size)
        self._staging[:filled] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)[:filled]
        cuda.copy(address, self._staging.ctypes.data, filled, stream)
        cuda.synchronize(stream)
        while filled < size:
            step = min(filled, size - filled)
            cuda.copy(address + filled, address, step, stream)
            filled += step

    def clear(self) -> None:
        """Zeroes the output: what a kernel leaves out shows."""
        address = self._slab.address + self._slab.offsets["output"]
        self._context.cuda.zero(address, self._output.nbytes, self._context.stream)

    def output(self) -> NDArray[Any]:
        """What the last kernel has written."""
        address = self._slab.address + self._slab.offsets["output"]
        found = np.empty_like(self._output)
        self._context.cuda.copy(self._staging.ctypes.data, address, found.nbytes, self._context.stream)
        self._context.cuda.synchronize(self._context.stream)
        found.view(np.uint8).reshape(-1)[:] = self._staging[: found.nbytes]
        return found


def _times(
    context: GpuContext, functions: Sequence[Callable[..., Any]], arguments: Sequence[Sequence[Any]]
) -> list[float]:
    """Seconds a call of each kernel, the median over rounds in which their graphs are replayed in turns."""
    cuda, stream = context.cuda, context.stream
    calls = max(len(arguments), _LEAST_CALLS)
    graphs = []
    for function in functions:
        cuda.begin_capture(stream)
        for turn in range(calls):
            function(*arguments[turn % len(arguments)])
        graphs.append(cuda.end_capture(stream))
    first, last = cuda.event(timed=True), cuda.event(timed=True)
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(1 + _ROUNDS):
        for graph, found in zip(graphs, times, strict=True):
            cuda.launch(graph, stream)  # keeps the GPU busy until the next is there, or that would be waited for, too
            cuda.record(first, stream)
            cuda.launch(graph, stream)
            cuda.record(last, stream)
            cuda.wait(last)
            found.append(cuda.seconds(first, last) / calls)
    for graph in graphs:
        cuda.destroy(graph)
    return [statistics.median(found[1:]) for found in times]  # the first round warms up


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return np.array_equal(a.view(np.uint8), b.view(np.uint8))


def reason(error: Exception) -> str:
    """The last line of what an error says: others are of its traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
