"""The cache operators against a list of tokens: random calls, attention equal to cache-free attention.

Cache and scratch start as NaN, and scratch is NaN again after each commit: whoever reads a slot that holds no
confirmed token, or a scratch row of an earlier verify, gets NaN.
"""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor

import dspark_compiler.graph.ops  # noqa: F401  (defines the operators)

dspark = torch.ops.dspark

BATCH, HEADS, GROUPS, DIM, VALUE_DIM, SLOTS, SCRATCH = 2, 4, 2, 3, 5, 24, 4
NAN = float("nan")

seeds = st.integers(0, 2**31)


def _tokens(seed: int, batch: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random q [b,H,S,D], k [b,G,S,D], v [b,G,S,Dv]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, HEADS, width, DIM), (batch, GROUPS, width, DIM), (batch, GROUPS, width, VALUE_DIM)
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


class Transaction(RuleBasedStateMachine):
    """Prefill, decode and verify with commit, in any order, on a cache of two sequences."""

    @initialize(window=st.sampled_from([0, 3, 6]), softcap=st.sampled_from([0.0, 5.0]), sinks=st.booleans())
    def start(self, window: int, softcap: float, sinks: bool) -> None:
        self.caches = [torch.full((BATCH, GROUPS, SLOTS, d), NAN) for d in (DIM, VALUE_DIM)]
        self.scratch = [torch.full((BATCH, GROUPS, SCRATCH, d), NAN) for d in (DIM, VALUE_DIM)]
        self.options = (0.6, window, softcap, torch.linspace(-1, 1, HEADS) if sinks else None)
        # The model: each sequence's confirmed keys [G,n,D] and values [G,n,Dv].
        self.confirmed = [(torch.zeros(GROUPS, 0, DIM), torch.zeros(GROUPS, 0, VALUE_DIM)) for _ in range(BATCH)]

    def _lengths(self) -> list[int]:
        return [k.shape[1] for k, _ in self.confirmed]

    def _expected(self, sequence: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Cache-free attention of q [H,S,D] after the confirmed tokens; [S,H,Dv]."""
        keys, values = (torch.cat([old, new], 1) for old, new in zip(self.confirmed[sequence], (k, v), strict=True))
        earlier = torch.zeros(HEADS, self._lengths()[sequence], DIM)  # their outputs are not looked at
        queries = torch.cat([earlier, q], 1)
        return dspark.attention(queries[None], keys[None], values[None], 0, *self.options)[0, -q.shape[1] :]

    def _confirm(self, sequence: int, k: Tensor, v: Tensor) -> None:
        keys, values = self.confirmed[sequence]
        self.confirmed[sequence] = (torch.cat([keys, k], 1), torch.cat([values, v], 1))

    def _check_caches(self) -> None:
        for sequence, (length, tokens) in enumerate(zip(self._lengths(), self.confirmed, strict=True)):
            for cache, expected in zip(self.caches, tokens, strict=True):
                assert torch.equal(cache[sequence, :, :length], expected), "confirmed tokens are not as they were"
                assert cache[sequence, :, length:].isnan().all(), "a slot beyond the confirmed tokens was written"

    def _append(self, rows: list[int], width: int, count: list[int], seed: int) -> None:
        q, k, v = _tokens(seed, len(rows), width)
        lengths = [self._lengths()[r] for r in rows]
        out = dspark.append_attention(
            q, k, v, *self.caches, _int32(rows), _int32(lengths), _int32(count), *self.options
        )
        assert out.isfinite().all()
        for row, (sequence, n) in enumerate(zip(rows, count, strict=True)):
            if n > 0:
                expected = self._expected(sequence, q[row, :, :n], k[row, :, :n], v[row, :, :n])
                torch.testing.assert_close(out[row, :n], expected, rtol=1e-5, atol=1e-6)
            self._confirm(sequence, k[row, :, :n], v[row, :, :n])
        self._check_caches()

    @rule(sequence=st.integers(0, BATCH - 1), count=st.integers(1, 5), padding=st.integers(0, 3), seed=seeds)
    def prefill(self, sequence: int, count: int, padding: int, seed: int) -> None:
        count = min(count, SLOTS - self._lengths()[sequence])
        self._append([sequence], count + padding, [count], seed)

    @rule(take=st.lists(st.booleans(), min_size=BATCH, max_size=BATCH), seed=seeds)
    def decode(self, take: list[bool], seed: int) -> None:
        count = [int(t and n < SLOTS) for t, n in zip(take, self._lengths(), strict=True)]
        self._append(list(range(BATCH)), 1, count, seed)

    @precondition(lambda self: max(self._lengths()) + SCRATCH <= SLOTS)
    @rule(
        width=st.integers(1, SCRATCH),
        accepted=st.lists(st.integers(0, SCRATCH), min_size=BATCH, max_size=BATCH),
        seed=seeds,
    )
    def verify_and_commit(self, width: int, accepted: list[int], seed: int) -> None:
        q, k, v = _tokens(seed, BATCH, width)
        accepted = [min(a, width) for a in accepted]
        lengths = _int32(self._lengths())
        out = dspark.scratch_attention(q, k, v, *self.caches, *self.scratch, lengths, *self.options)
        self._check_caches()
        for sequence in range(BATCH):
            expected = self._expected(sequence, q[sequence], k[sequence], v[sequence])
            torch.testing.assert_close(out[sequence], expected, rtol=1e-5, atol=1e-6)
        dspark.commit_scratch(*self.caches, *self.scratch, lengths, _int32(accepted))
        for sequence, n in enumerate(accepted):
            self._confirm(sequence, k[sequence, :, :n], v[sequence, :, :n])
        self._check_caches()
        for scratch in self.scratch:
            scratch.fill_(NAN)


Transaction.TestCase.settings = settings(
    max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestTransaction = Transaction.TestCase


def test_last_row_is_the_last_real_token():
    x = torch.arange(24.0).reshape(2, 4, 3)
    assert torch.equal(dspark.last_row(x, _int32([4, 2])), torch.stack([x[0, 3:], x[1, 1:2]]))
    assert torch.equal(dspark.last_row(x, _int32([0, 1])), x[:, :1]), "a call of no tokens must not read past the end"


def test_rms_norm_rounds_once():
    x = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)
    weight = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 0.5).sqrt()
    assert torch.equal(dspark.rms_norm(x, weight, 0.5), (exact * weight.double()).to(torch.bfloat16))
    assert torch.equal(dspark.rms_norm(x, None, 0.5), exact.to(torch.bfloat16))
