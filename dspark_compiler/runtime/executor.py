"""Runs an artifact's entry points on numpy arrays; owns weights, caches and input buffers.

Shapes: B sequences the artifact holds, N tokens of a verify, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark_compiler.artifact import Artifact, EntrySpec, aligned_zeros
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.library import Function, import_tvm_ffi, load_functions

Logits = NDArray[np.float32]


class _Call:
    """One entry point with its argument list, built once; inputs are written into the same buffers each time."""

    def __init__(self, spec: EntrySpec, function: Function, shared: dict[str, Any]) -> None:
        from_dlpack = import_tvm_ffi().from_dlpack
        self.width = spec.width
        self._function = function
        self._inputs = {tensor.name: aligned_zeros(tensor.shape, tensor.dtype) for tensor in spec.inputs}
        self._arguments = [from_dlpack(self._inputs[tensor.name]) for tensor in spec.inputs]
        self._arguments += [shared[name] for name in (*spec.states, *spec.params)]

    def __call__(self, **inputs: ArrayLike) -> Any:
        """Runs with these inputs, each broadcast to its buffer; returns what the function returned."""
        for name, value in inputs.items():
            self._inputs[name][...] = value
        return self._function(*self._arguments)


class Executor:
    """The compiled model as four operations. Not thread-safe.

    A sequence's row of the cache is addressed by index; ``length`` is the slots it uses already, ``positions`` are
    logical. Nothing has to be reset: a sequence starts anew when it is called with length 0.

    Raises:
        ArtifactError: library or weights cannot be loaded.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None) -> None:
        manifest = artifact.manifest
        functions = load_functions(artifact, threads)
        from_dlpack = import_tvm_ffi().from_dlpack
        arrays = artifact.params(prefault=True)
        arrays |= {name: aligned_zeros(state.shape, state.dtype) for name, state in manifest.states.items()}
        # Tensors keep the arrays they came from alive.
        shared = {name: from_dlpack(array) for name, array in arrays.items()}
        calls: dict[str, list[_Call]] = {"prefill": [], "decode": [], "verify": [], "commit": []}
        for name, spec in manifest.entry_points.items():
            calls[spec.kind].append(_Call(spec, functions[name], shared))
        self.batch = manifest.max_batch
        self.slots = manifest.kv.slots
        self._prefill = sorted(calls["prefill"], key=lambda call: call.width)
        (self._decode,) = calls["decode"]
        self._verify = {call.width: call for call in calls["verify"]}
        self._commit = next(iter(calls["commit"]), None)
        self._sequences = np.arange(self.batch, dtype=np.int32)

    @property
    def verify_widths(self) -> tuple[int, ...]:
        """Numbers of tokens ``verify`` can take; empty if the artifact cannot verify."""
        return tuple(sorted(self._verify)) if self._commit is not None else ()

    def prefill(self, sequence: int, tokens: Sequence[int], positions_start: int, length: int) -> Logits:
        """Appends tokens to a sequence that uses ``length`` slots already; returns the last one's logits [V].

        Works in chunks: the widest entry point that the rest fills to 7/8, else the narrowest.

        Raises:
            InputError: more tokens than there are slots left.
        """
        if length + len(tokens) > self.slots:
            raise InputError(f"{length + len(tokens)} tokens do not fit the {self.slots} slots of a sequence")
        rest = np.asarray(tokens, dtype=np.int64)
        position = positions_start
        result: Any = None
        while rest.size:
            call = self._prefill_for(rest.size)
            count = min(rest.size, call.width)
            # Padding repeats the last real token and position, so that lookups by either stay within their tables.
            index = np.minimum(np.arange(call.width), count - 1)
            result = call(
                input_ids=rest[index], positions=position + index, sequence=sequence, length=length, count=count
            )
            rest = rest[count:]
            position += count
            length += count
        return _array(result).reshape(-1)

    def _prefill_for(self, tokens: int) -> _Call:
        # A wide chunk that is nearly full costs less than the narrow ones it takes the place of.
        filled = [call for call in self._prefill if call.width * 7 <= tokens * 8]
        return filled[-1] if filled else self._prefill[0]

    def decode(self, tokens: ArrayLike, positions: ArrayLike, lengths: ArrayLike, counts: ArrayLike) -> Logits:
        """One token for each sequence, appended at slot ``lengths``; each argument [B], returns logits [B,V].

        A count of 0 leaves a sequence alone; its logits mean nothing.
        """
        result = self._decode(
            input_ids=np.reshape(tokens, (-1, 1)),
            positions=np.reshape(positions, (-1, 1)),
            sequence=self._sequences,
            length=lengths,
            count=counts,
        )
        return _array(result).reshape(self.batch, -1)

    def verify(self, tokens: ArrayLike, positions: ArrayLike, lengths: ArrayLike) -> Logits:
        """Logits [B,N,V] of N unconfirmed tokens a sequence (tokens, positions [B,N]; lengths [B]).

        Live slots are only read; ``commit`` confirms a prefix.
        """
        width = np.shape(tokens)[1]
        return _array(self._verify[width](input_ids=tokens, positions=positions, length=lengths))

    def commit(self, lengths: ArrayLike, accepted: ArrayLike) -> None:
        """Appends the first ``accepted`` tokens of the last verify at slot ``lengths`` of each sequence; both [B]."""
        assert self._commit is not None, "verify_widths is empty"
        self._commit(length=lengths, accepted=accepted)


def _array(result: Any) -> Logits:
    """The first output; an entry point returns one tensor or a tuple of them."""
    tensor = result if hasattr(result, "__dlpack__") else result[0]
    array: NDArray[Any] = np.from_dlpack(tensor)
    return array
