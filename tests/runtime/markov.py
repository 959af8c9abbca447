"""A target and a drafter whose distributions are known: Markov chains, with the operations of an executor.

It keeps what was confirmed, and refuses whatever does not fit that. Acceptance is the reference operator's.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from dspark_compiler.graph import sampling_ops
from dspark_compiler.runtime.calls import Fetched
from dspark_compiler.runtime.rounds import Anchors, Drafts, Step, Verdict
from dspark_compiler.runtime.sampling import SamplingInputs, pick

V = 8
_SURE = np.linspace(-2, 2, V)


def tables(seed: int = 0, sharpness: float = 1.0, closeness: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Logits [V,V] of the target and of a drafter that is more or less like it."""
    rng = np.random.default_rng(seed)
    target, noise = sharpness * rng.standard_normal((2, V, V)).astype(np.float32)
    return target, closeness * target + (1 - closeness) * noise


class MarkovExecutor:
    """See Executor; ``room`` bounds how many tokens a round may confirm, as pruned caches do.

    With ``draws`` it draws tokens of plain steps itself, with ``chains`` rounds may be made ahead.
    """

    def __init__(
        self,
        target: np.ndarray,
        drafter: np.ndarray,
        *,
        batch: int = 1,
        block_size: int = 3,
        widths: tuple[int, ...] = (2, 4),
        max_seq_len: int = 10**6,
        room: int = 10**6,
        confidence: bool = False,
        draws: bool = False,
        chains: bool = False,
    ) -> None:
        self.target, self.drafter = target, drafter
        self._laws: dict[tuple[bool, float], np.ndarray] = {}
        self.batch, self.block_size, self.round_widths, self.max_seq_len = batch, block_size, widths, max_seq_len
        self.room, self.confidence, self.draws, self.chains_rounds = room, confidence, draws, chains
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.calls: list[str] = []

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def used_slots(self, length: int) -> int:
        return length

    def exact_rows(self, sequence: int, length: int) -> int:
        return min(self.room, self.max_seq_len - length)

    def prefill(self, sequence: int, tokens: Sequence[int], positions_start: int, length: int) -> np.ndarray:
        assert positions_start == length == 0
        self.rows[sequence] = list(tokens)
        return self.target[tokens[-1]]

    def _at(self, row: int, position: int, length: int) -> None:
        assert position == length == len(self.rows[row]) < self.max_seq_len

    def decode(self, tokens: np.ndarray, positions: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
        self.calls.append("decode")
        for row in np.flatnonzero(counts):
            self._at(row, positions[row], lengths[row])
            self.rows[row].append(int(tokens[row]))
        return self.target[tokens]

    def step(
        self,
        tokens: np.ndarray | Step,
        positions: np.ndarray,
        lengths: np.ndarray,
        counts: np.ndarray,
        uniforms: np.ndarray,
        sampling: SamplingInputs,
    ) -> Step:
        given = tokens.tensor if isinstance(tokens, Step) else tokens
        logits = self.decode(given, positions, lengths, counts)
        p = self.probs(self.target, given[:, None], sampling)[:, 0]
        drawn = np.array([pick(p[row], float(uniforms[row, 0])) for row in range(self.batch)])
        return Step(drawn, Fetched(lambda: (drawn,)), lambda row: logits[row])

    def probs(self, of: np.ndarray, tokens: np.ndarray, sampling: SamplingInputs) -> np.ndarray:
        """Distributions [B,R,V] after tokens [B,R], by the logits ``of`` the target or the drafter.

        Only temperature is known here.
        """
        temperatures = sampling.temperature.tolist()
        return np.stack([self._law(of, t)[after] for t, after in zip(temperatures, tokens, strict=True)])

    def _law(self, of: np.ndarray, temperature: float) -> np.ndarray:
        """All distributions [V,V] at a temperature."""
        key = (of is self.target, temperature)
        if key not in self._laws:
            scores = of.astype(np.float64) / (temperature or 1)
            weights = np.exp(scores - scores.max(-1, keepdims=True)) if temperature else np.eye(V)[of.argmax(-1)]
            self._laws[key] = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
        return self._laws[key]

    def draft(self, anchors: Anchors, uniforms: np.ndarray, sampling: SamplingInputs) -> Drafts:
        self.calls.append("draft")
        assert uniforms.shape == (self.batch, self.block_size)
        assert ((uniforms >= 0) & (uniforms < 1)).all()
        previous, tokens, probs, confidence = anchors.tokens, [], [], []
        for step in range(self.block_size):
            confidence.append(self.confidence_logits(previous))
            q = self.probs(self.drafter, previous[:, None], sampling)[:, 0]
            previous = np.array([pick(q[row], float(uniforms[row, step])) for row in range(self.batch)])
            tokens.append(previous)
            probs.append(q)
        stacked = torch.from_numpy(np.stack(probs, axis=1))
        counts = np.full(self.batch, self.block_size)
        sure = np.stack(confidence, axis=1).astype(np.float32) if self.confidence else None
        return Drafts(np.stack(tokens, axis=1), counts, stacked, sure)

    def confidence_logits(self, previous: np.ndarray) -> np.ndarray:
        """How sure it is of a draft, told by the token before it: that is the most a confidence may know."""
        return _SURE[(3 * previous) % V]

    def speculate(
        self, anchors: Anchors, drafts: Drafts, counts: np.ndarray, uniforms: np.ndarray, sampling: SamplingInputs
    ) -> Verdict:
        width = next(width for width in self.round_widths if width > counts.max())
        self.calls.append(f"verify {width}")
        tokens = np.column_stack([anchors.tokens, drafts.tokens])[:, :width]
        p = self.probs(self.target, tokens, sampling)
        accepted, following, positions, lengths = sampling_ops.accept(
            torch.from_numpy(tokens),
            torch.from_numpy(p),
            torch.from_numpy(counts.astype(np.int32)),
            torch.from_numpy(np.column_stack([uniforms[:, : width - 1], uniforms[:, -1]])),
            torch.from_numpy(np.asarray(anchors.positions)),
            torch.from_numpy(np.asarray(anchors.lengths)),
            drafts.probs,
        )
        for row in np.flatnonzero(counts >= 0):
            self._at(row, anchors.positions[row], anchors.lengths[row])
            confirmed = tokens[row, : int(accepted[row])].tolist()
            assert len(confirmed) <= self.exact_rows(row, anchors.lengths[row])
            self.rows[row] += confirmed
        found = accepted.numpy(), following.numpy()
        after = Anchors(found[1], positions.numpy(), lengths.numpy())
        return Verdict(after, Fetched(lambda: found), lambda row: self.target[tokens[row, 0]])
