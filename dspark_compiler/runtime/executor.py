"""Runs an artifact's entry points on numpy arrays; owns weights, caches and input buffers.

Where a device has its own clock, results that the next call takes stay there, and the host reads no more than it needs.

Shapes: B sequences the artifact holds, N tokens of a verify, g tokens of a draft, V vocabulary.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark_compiler.artifact import Artifact, nbytes
from dspark_compiler.errors import InputError
from dspark_compiler.runtime.calls import Call, Columns
from dspark_compiler.runtime.devices import Device, open_device
from dspark_compiler.runtime.library import load_functions
from dspark_compiler.runtime.rounds import Anchors, Drafts, Step, Verdict
from dspark_compiler.runtime.sampling import SamplingInputs
from dspark_compiler.runtime.slots import SlotAccount

Logits = NDArray[np.float32]


class Executor:
    """The compiled model as a few operations. Not thread-safe.

    A sequence's row of the cache is addressed by index; ``length`` is its confirmed tokens, ``positions`` are logical.
    Where the cache keeps fewer slots than that, slots are evicted when room is needed, never within a verify. Nothing
    has to be reset: a sequence starts anew when it is called with length 0.

    Attributes:
        device: where it runs.
        batch: sequences the artifact holds.
        cache_bytes: memory allocated for all that lives between calls; none is allocated for it later.
        calls: its entry points by name, for those who measure them one by one.
        max_seq_len: tokens a sequence can have.
        block_size: tokens a draft has, 0 where the artifact has no drafter or one without weights.
        verify_widths: numbers of tokens ``verify`` can take; empty if the artifact cannot verify.
        prefill_widths: numbers of tokens a chunk of ``prefill`` can have.
        round_widths: numbers of tokens ``speculate`` can look at, drafts and the one before them; empty without heads.

    Raises:
        ArtifactError: library or weights cannot be loaded.
        DeviceError: the device cannot be used, or they do not fit it.
    """

    def __init__(self, artifact: Artifact, *, threads: int | None = None, device: Device | None = None) -> None:
        """``threads`` bounds the host's; ``device`` None: the one the artifact was compiled for."""
        manifest = artifact.manifest
        functions = load_functions(artifact, threads)
        self.device = device or open_device(artifact)
        shared = self.device.tensors(artifact)
        self.cache_bytes = sum(nbytes(state) for state in manifest.states.values())
        specs = manifest.entry_points
        named = {name: self.device.call(spec, functions[name], shared) for name, spec in specs.items()}
        self.calls: Mapping[str, Call] = named
        calls: dict[str, list[Call]] = defaultdict(list)
        for name, call in named.items():
            calls[specs[name].kind].append(call)
        self.batch = manifest.max_batch
        self.max_seq_len = manifest.max_seq_len
        self._slots = manifest.kv.slots
        pruning = manifest.kv.pruning
        self._account = None if pruning is None else SlotAccount(pruning, self.batch)
        self._evict = named.get("evict")
        self._evict_prompt = named.get("evict_prompt", self._evict)
        self._prefill = sorted(calls["prefill"], key=lambda call: call.width)
        self.prefill_widths = tuple(call.width for call in self._prefill)
        (self._decode,) = calls["decode"]
        self._verify = {call.width: call for call in calls["verify"]}
        self._commit = next(iter(calls["commit"]), None)
        self._draft = next(iter(calls["draft"]), None)
        self._accept = {call.width: call for call in calls["accept"]}
        self.block_size = 0 if self._draft is None else self._draft.width
        self.verify_widths = tuple(sorted(self._verify)) if self._commit is not None else ()
        self.round_widths = tuple(width for width in self.verify_widths if width in self._accept)
        self._sequences = np.arange(self.batch, dtype=np.int32)
        self._sequences.flags.writeable = False
        self._whole_blocks = np.full(self.batch, self.block_size)
        self._tensor = self.device.tensor_type

    @property
    def draws(self) -> bool:
        """Whether ``step`` can be called: the artifact draws tokens of plain decoding itself."""
        return 1 in self._accept

    @property
    def chains_rounds(self) -> bool:
        """Whether a round can be made before the host knows how the last one ended, and whether that gains time."""
        return self.device.is_late and self._account is None and self._draft is not None

    def together(self) -> AbstractContextManager[None]:
        """A draft and what is made of it may wait for the end of this, to be launched as one."""
        return self.device.together()

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
        if length + len(tokens) > self.max_seq_len:
            raise InputError(f"{length + len(tokens)} tokens do not fit a sequence of at most {self.max_seq_len}")
        rest = np.asarray(tokens, dtype=np.int64)
        position = positions_start
        result: dict[str, Any] = {}
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
        return self._read(result["logits"]).reshape(-1)

    def _prefill_for(self, tokens: int) -> Call:
        # A wide chunk that is nearly full costs less than the narrow ones it takes the place of.
        filled = [call for call in self._prefill if call.width * 7 <= tokens * 8]
        return filled[-1] if filled else self._prefill[0]

    def decode(self, tokens: ArrayLike, positions: ArrayLike, lengths: ArrayLike, counts: ArrayLike) -> Logits:
        """One token for each sequence, appended at slot ``lengths``; each argument [B], returns logits [B,V].

        A count of 0 leaves a sequence alone; its logits mean nothing.
        """
        return self._read(self._run_decode(tokens, positions, lengths, counts)).reshape(self.batch, -1)

    def step(
        self,
        tokens: ArrayLike | Step,
        positions: ArrayLike,
        lengths: ArrayLike,
        counts: ArrayLike,
        uniforms: ArrayLike,
        sampling: SamplingInputs,
    ) -> Step:
        """As ``decode``, and draws what follows by a number in [0, 1) a sequence, [B,1]; nothing waits for it.

        ``tokens`` may be the step before, whether or not its tokens are known to the host.
        """
        given = tokens.tensor if isinstance(tokens, Step) else tokens
        accept = self._accept[1]
        # An anchor is not looked at.
        accept.prepare(tokens=0, count=0, position=0, length=0, uniform=uniforms, **sampling.as_inputs())
        with self.together():
            logits = self._run_decode(given, positions, lengths, counts)
            result = accept(logits=logits)
            fetched = self.device.fetch(result["next"])
        return Step(result["next"], fetched, lambda row: self._read(logits)[row, 0])

    def _run_decode(self, tokens: ArrayLike | Any, positions: ArrayLike, lengths: ArrayLike, counts: ArrayLike) -> Any:
        """The logits [B,1,V] as the entry point returned them; ``tokens`` may be a tensor of it."""
        lengths, counts = np.asarray(lengths), np.asarray(counts)
        for row in self._accounted(counts):
            self._make_room(row, int(lengths[row]), 1, self._evict)
        result = self._decode(
            input_ids=tokens if isinstance(tokens, self._tensor) else np.reshape(tokens, (-1, 1)),
            positions=np.reshape(positions, (-1, 1)),
            sequence=self._sequences,
            length=lengths,
            count=counts,
            **self._free(lengths),
        )
        for row in self._accounted(counts):
            self._confirm(row, 1)
        return result["logits"]

    def verify(self, tokens: ArrayLike, positions: ArrayLike, lengths: ArrayLike, *, reading: bool = False) -> Logits:
        """Logits [B,N,V] of N unconfirmed tokens a sequence (tokens, positions [B,N]; lengths [B]).

        Live slots are only read; ``commit`` confirms a prefix of at most ``exact_rows`` tokens. ``reading`` evicts as
        while a prompt is read, for those who want the logits of a given text.
        """
        evict = self._evict_prompt if reading else self._evict
        known = np.asarray(lengths)
        call = self._verify[np.shape(positions)[-1]]
        made = call(input_ids=tokens, positions=positions, length=known, **self._room_to_verify(known, evict))
        return self._read(made["logits"])

    def _room_to_verify(self, lengths: Any, evict: Call | None) -> dict[str, Any]:
        """Evicts slots of sequences where a verify needs that; returns its input ``free``."""
        if self._account is None:
            return {}
        for row in self._accounted(lengths):
            self._make_room(row, int(lengths[row]), 1, evict)
        return self._free(lengths)

    def commit(self, lengths: ArrayLike, accepted: ArrayLike) -> None:
        """Confirms the first ``accepted`` tokens of the last verify of sequences of ``lengths`` tokens; both [B]."""
        assert self._commit is not None, "verify_widths is empty"
        lengths, accepted = np.asarray(lengths), np.asarray(accepted)
        for row in np.flatnonzero(accepted):
            assert accepted[row] <= self.exact_rows(int(row), int(lengths[row])), "more than exact_rows confirmed"
            self._make_room(int(row), int(lengths[row]), int(accepted[row]), self._evict)
        self._commit(length=lengths, accepted=accepted, **self._free(lengths))
        for confirmed in self._accounted(accepted):
            self._confirm(confirmed, int(accepted[confirmed]))

    def draft(self, anchors: Anchors, uniforms: ArrayLike, sampling: SamplingInputs) -> Drafts:
        """A block of g tokens after each anchor; uniforms [B,g] in [0, 1), one a token. Nothing is written."""
        assert self._draft is not None, "block_size is 0"
        place = {"anchor": anchors.tokens, "position": anchors.positions, "length": anchors.lengths}
        made = self._draft(**place, uniform=uniforms, **sampling.as_inputs())
        read = [made[name] for name in ("input_ids", "confidence") if name in made]
        return Drafts.on_device(made, self._whole_blocks, self.device.fetch(*read), late=self.device.is_late)

    def speculate(
        self, anchors: Anchors, drafts: Drafts, counts: ArrayLike, uniforms: ArrayLike, sampling: SamplingInputs
    ) -> Verdict:
        """Verifies each anchor and its first ``counts`` drafts, and confirms the anchor and those that stay.

        counts [B]: one below 0 leaves a sequence alone, and none may exceed ``exact_rows`` - 1. uniforms [B,g+1] in
        [0, 1): one a draft, the last for the token that follows. What the entry points need of each other passes from
        call to call on the device; nothing is waited for but where slots are evicted, by lengths that the host knows.
        """
        counts, numbers = np.asarray(counts), np.asarray(uniforms)
        width = self.round_widths[bisect_right(self.round_widths, int(counts.max()))]
        verify, accept, last = self._verify[width], self._accept[width], numbers.shape[1] - 1
        if width != last + 1:
            numbers = numbers[:, [*(min(place, last) for place in range(width - 1)), last]]
        on_device = isinstance(anchors.tokens, self._tensor)
        place = {"position": anchors.positions, "length": anchors.lengths}
        accept.prepare(count=counts, uniform=numbers, **sampling.as_inputs(), **({} if on_device else place))
        inputs, lengths = drafts.verify_inputs(anchors, counts, width), drafts.lengths(anchors)
        logits = verify(**inputs, length=lengths, **self._room_to_verify(anchors.lengths, self._evict))["logits"]
        ids = inputs["input_ids"] if isinstance(inputs["input_ids"], Columns) else verify.inputs["input_ids"]
        certain = {} if drafts.probs is None else {"draft_probs": drafts.probs}
        made = accept(tokens=ids, logits=logits, **certain, **(place if on_device else {}))
        fetched = self.device.fetch(made["accepted"], made["next"])
        if self._account is None:
            assert self._commit is not None, "verify_widths is empty"
            self._commit(length=lengths, accepted=made["accepted"])
        else:
            self.commit(anchors.lengths, fetched.arrays()[0])
        following = Anchors(made["next"], made["position"], made["length"])
        return Verdict(following, fetched, lambda row: self._read(logits)[row, 0])

    def _read(self, logits: Any) -> Logits:
        (array,) = self.device.fetch(logits).arrays()
        return array

    def _accounted(self, numbers: NDArray[Any]) -> list[int]:
        """Rows of which the number is not 0, if there is an account of slots."""
        return [] if self._account is None else [int(row) for row in np.flatnonzero(numbers)]

    def _make_room(self, row: int, length: int, count: int, evict: Call | None) -> dict[str, Any]:
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
