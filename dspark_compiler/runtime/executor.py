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
from dspark_compiler.runtime.slots import SlotAccount

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

    A sequence's row of the cache is addressed by index; ``length`` is its confirmed tokens, ``positions`` are logical.
    Where the cache keeps fewer slots than that, slots are evicted when room is needed, never within a verify. Nothing
    has to be reset: a sequence starts anew when it is called with length 0.

    Attributes:
        batch: sequences the artifact holds.
        cache_bytes: memory allocated for all that lives between calls; none is allocated for it later.

    Raises:
        ArtifactError: library or weights cannot be loaded.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None) -> None:
        manifest = artifact.manifest
        functions = load_functions(artifact, threads)
        from_dlpack = import_tvm_ffi().from_dlpack
        arrays = artifact.params(prefault=True)
        states = {name: aligned_zeros(state.shape, state.dtype) for name, state in manifest.states.items()}
        self.cache_bytes = sum(array.nbytes for array in states.values())
        arrays |= states
        # Tensors keep the arrays they came from alive.
        shared = {name: from_dlpack(array) for name, array in arrays.items()}
        named = {name: _Call(spec, functions[name], shared) for name, spec in manifest.entry_points.items()}
        calls: dict[str, list[_Call]] = {"prefill": [], "decode": [], "verify": [], "commit": [], "evict": []}
        for name, call in named.items():
            calls[manifest.entry_points[name].kind].append(call)
        self.batch = manifest.max_batch
        self._max_seq_len = manifest.max_seq_len
        self._slots = manifest.kv.slots
        pruning = manifest.kv.pruning
        self._account = None if pruning is None else SlotAccount(pruning, self.batch)
        self._evict = named.get("evict")
        self._evict_prompt = named.get("evict_prompt", self._evict)
        self._prefill = sorted(calls["prefill"], key=lambda call: call.width)
        (self._decode,) = calls["decode"]
        self._verify = {call.width: call for call in calls["verify"]}
        self._commit = next(iter(calls["commit"]), None)
        self._sequences = np.arange(self.batch, dtype=np.int32)

    @property
    def verify_widths(self) -> tuple[int, ...]:
        """Numbers of tokens ``verify`` can take; empty if the artifact cannot verify."""
        return tuple(sorted(self._verify)) if self._commit is not None else ()

    def used_slots(self, length: int) -> int:
        """Slots that ``length`` confirmed tokens take."""
        return min(length, self._slots)

    def exact_rows(self, sequence: int, length: int) -> int:
        """How many tokens of the next verify may be confirmed: decoding one by one would evict slots after so many."""
        if self._account is None:
            return self._slots - length
        if length == 0:
            return self._account.info.room
        return int(self._account.free[sequence]) or self._account.info.block

    def prefill(self, sequence: int, tokens: Sequence[int], positions_start: int, length: int) -> Logits:
        """Appends tokens to a sequence of ``length`` confirmed ones; returns the last one's logits [V].

        Works in chunks: the widest entry point that the rest fills to 7/8, else the narrowest.

        Raises:
            InputError: more tokens than a sequence can have.
        """
        if length + len(tokens) > self._max_seq_len:
            raise InputError(f"{length + len(tokens)} tokens do not fit a sequence of at most {self._max_seq_len}")
        rest = np.asarray(tokens, dtype=np.int64)
        position = positions_start
        result: Any = None
        while rest.size:
            call = self._prefill_for(rest.size)
            count = min(rest.size, call.width)
            # Padding repeats the last real token and position, so that lookups by either stay within their tables.
            index = np.minimum(np.arange(call.width), count - 1)
            inputs = {"sequence": sequence, "length": length, "count": count}
            inputs |= self._make_room(sequence, length, count, self._evict_prompt)
            result = call(input_ids=rest[index], positions=position + index, **inputs)
            self._confirm(sequence, count)
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
        lengths, counts = np.asarray(lengths), np.asarray(counts)
        for row in np.flatnonzero(counts):
            self._make_room(int(row), int(lengths[row]), 1, self._evict)
        result = self._decode(
            input_ids=np.reshape(tokens, (-1, 1)),
            positions=np.reshape(positions, (-1, 1)),
            sequence=self._sequences,
            length=lengths,
            count=counts,
            **self._free(lengths),
        )
        for row in np.flatnonzero(counts):
            self._confirm(int(row), 1)
        return _array(result).reshape(self.batch, -1)

    def verify(self, tokens: ArrayLike, positions: ArrayLike, lengths: ArrayLike, *, reading: bool = False) -> Logits:
        """Logits [B,N,V] of N unconfirmed tokens a sequence (tokens, positions [B,N]; lengths [B]).

        Live slots are only read; ``commit`` confirms a prefix of at most ``exact_rows`` tokens. ``reading`` evicts as
        while a prompt is read, for those who want the logits of a given text.
        """
        width, lengths = np.shape(tokens)[1], np.asarray(lengths)
        for row in np.flatnonzero(lengths):
            self._make_room(int(row), int(lengths[row]), 1, self._evict_prompt if reading else self._evict)
        call = self._verify[width]
        return _array(call(input_ids=tokens, positions=positions, length=lengths, **self._free(lengths)))

    def commit(self, lengths: ArrayLike, accepted: ArrayLike) -> None:
        """Confirms the first ``accepted`` tokens of the last verify of sequences of ``lengths`` tokens; both [B]."""
        assert self._commit is not None, "verify_widths is empty"
        lengths, accepted = np.asarray(lengths), np.asarray(accepted)
        for row in np.flatnonzero(accepted):
            assert accepted[row] <= self.exact_rows(int(row), int(lengths[row])), "more than exact_rows confirmed"
            self._make_room(int(row), int(lengths[row]), int(accepted[row]), self._evict)
        self._commit(length=lengths, accepted=accepted, **self._free(lengths))
        for row in np.flatnonzero(accepted):
            self._confirm(int(row), int(accepted[row]))

    def _make_room(self, row: int, length: int, count: int, evict: _Call | None) -> dict[str, Any]:
        """Evicts slots of a sequence if ``count`` more tokens need that; returns the input ``free`` of a prefill."""
        if self._account is None:
            return {}
        assert evict is not None
        if length == 0:
            self._account.start(row)
        need = self._account.need(row, count)
        free, pending = self._account.free, self._account.pending
        if need is not None:
            evict(sequence=row, length=length, free=free[row], need=need, pending=pending[row])
            self._account.evicted(row, need)
        return {"free": free[row]}

    def _free(self, lengths: NDArray[Any]) -> dict[str, Any]:
        """The input ``free`` of all sequences; one of no tokens is about to begin."""
        if self._account is None:
            return {}
        return {"free": np.where(lengths == 0, self._account.info.room, self._account.free)}

    def _confirm(self, row: int, count: int) -> None:
        if self._account is not None:
            self._account.confirmed(row, count)


def _array(result: Any) -> Logits:
    """The first output; an entry point returns one tensor or a tuple of them."""
    tensor = result if hasattr(result, "__dlpack__") else result[0]
    array: NDArray[Any] = np.from_dlpack(tensor)
    return array
