"""The target continues prompts: many rows at once over a fixed cache, each step one captured CUDA graph.

Row r's token at position p lies in column p of its cache, so prompts are padded on the right and rows need not be
aligned; what a pad wrote is overwritten before a token looks at it.
b rows, L columns, G key/value heads, D head size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dspark_compiler.graph.reference import masked_attention
from dspark_compiler.training.heads.attention import causal_attention, run_target, target_attention
from dspark_compiler.training.heads.target import FrozenTarget

_COLUMNS = 128  # a step looks at the next multiple of so many columns that holds every row's tokens
_LOOK = 16  # steps between two looks at whether all rows have ended
_WARM_UP = 3


@dataclass(frozen=True)
class Written:
    """ids int32 [b,L] on the CPU, padded behind; prompt and length int32 [b] count tokens."""

    ids: Tensor
    prompt: Tensor
    length: Tensor


class Writer:
    """Writes batches of up to ``rows`` sequences of up to ``columns`` tokens.

    ``obstacle`` says why steps are not captured, if that was tried.
    """

    def __init__(self, target: FrozenTarget, rows: int, columns: int, temperature: float) -> None:
        self.rows, self.columns = rows, -(-columns // _COLUMNS) * _COLUMNS
        self._limit = columns
        self._target, self._temperature = target, temperature
        self.obstacle: str | None = None
        device = target.device
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._biases: dict[int, Tensor] = {}  # by window, the same for all layers of a step
        self._row = torch.arange(rows, device=device)
        self._column = torch.arange(self.columns, device=device)
        self._ids = torch.zeros(rows, self.columns, dtype=torch.int64, device=device)
        self._token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(rows, dtype=torch.int64, device=device)
        self._last = torch.zeros(rows, dtype=torch.int64, device=device)  # position no row writes beyond
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._noise = torch.ones(rows, target.vocab_size, device=device)
        self._eos = torch.tensor(target.eos_token_ids or (-1,), device=device)
        self._bound = self.columns
        self._graphs: dict[int, torch.cuda.CUDAGraph] | None = {} if device.type == "cuda" else None

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]], new_tokens: int, generator: torch.Generator) -> Written:
        """Continues each prompt, to its end or for ``new_tokens``; ``generator`` is of the target's device."""
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(ids) for ids in prompts] + [1] * (self.rows - len(prompts)))
        padded = torch.zeros(self.rows, self.columns, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(prompt)
        self._ids.copy_(padded)
        self._position.copy_(lengths - 1)
        self._last.copy_((lengths + new_tokens - 1).clamp(max=self._limit - 1))
        self._ended.copy_(torch.arange(self.rows) >= len(prompts))
        self._draw(self._prefill(longest), generator)
        for step in range(1, min(new_tokens, self._limit)):
            if step % _LOOK == 0 and bool(self._ended.all()):
                break
            self._step(min(longest + step, self._limit), generator)
        ids = self._ids.cpu()[: len(prompts)]
        ends = self._position.cpu()[: len(prompts)] + 1
        width = int(ends.max())
        keep = torch.arange(width) < ends[:, None]
        return Written(torch.where(keep, ids[:, :width], 0).int(), lengths[: len(prompts)].int(), ends.int())

    def _prefill(self, longest: int) -> Tensor:
        """Final hidden states [b,d] of each prompt's last token; caches are filled."""
        width = min(self.columns, -(-longest // 8) * 8)
        positions = self._column[:width].expand(self.rows, -1)
        with target_attention(self._target.model, self._attend_prompt):
            hidden = run_target(self._target.model, self._ids[:, :width], positions)
        return hidden[self._row, self._position]

    def _attend_prompt(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        scale: float,
        window: int,
        softcap: float,
        sinks: Tensor | None,
        /,
    ) -> Tensor:
        if layer not in self._keys:
            self._keys[layer] = k.new_zeros(self.rows, k.shape[1], self.columns, k.shape[3])
            self._values[layer] = v.new_zeros(self.rows, v.shape[1], self.columns, v.shape[3])
        self._keys[layer][:, :, : k.shape[2]] = k
        self._values[layer][:, :, : v.shape[2]] = v
        return causal_attention(q, k, v, layer, scale, window, softcap, sinks)

    def _attend_token(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        scale: float,
        window: int,
        softcap: float,
        sinks: Tensor | None,
        /,
    ) -> Tensor:
        self._keys[layer][self._row, :, self._position] = k[:, :, 0]
        self._values[layer][self._row, :, self._position] = v[:, :, 0]
        keys, values = self._keys[layer][:, :, : self._bound], self._values[layer][:, :, : self._bound]
        if softcap or sinks is not None:
            seen = self._seen(window)[:, None, None].expand(-1, keys.shape[1], 1, -1)
            return masked_attention(q, keys, values, seen, scale, softcap, sinks)
        if window not in self._biases:
            seen = self._seen(window)
            self._biases[window] = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -torch.inf)[:, None, None]
        # The queries that share a key/value head stand where several tokens would, so that keys are read once.
        grouped = q.reshape(self.rows, k.shape[1], -1, q.shape[3])
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._biases[window], scale=scale)
        return out.reshape(self.rows, 1, q.shape[1], v.shape[3])

    def _seen(self, window: int) -> Tensor:
        """The columns each row's next token looks at, bool [b,L]."""
        column, position = self._column[: self._bound], self._position[:, None]
        seen = column <= position
        return seen & (column > position - window) if window else seen

    def _step(self, tokens: int, generator: torch.Generator) -> None:
        """One more token a row, where no row has more than ``tokens``."""
        self._noise.exponential_(generator=generator)
        self._bound = min(self.columns, -(-tokens // _COLUMNS) * _COLUMNS)
        if self._graphs is not None and self._bound not in self._graphs:
            self._capture()
        if self._graphs is None:
            self._decode()
        else:
            self._graphs[self._bound].replay()

    def _decode(self) -> None:
        self._biases.clear()
        with target_attention(self._target.model, self._attend_token):
            hidden = run_target(self._target.model, self._token, self._position[:, None])
        self._choose(hidden[:, 0])

    def _draw(self, hidden: Tensor, generator: torch.Generator) -> None:
        self._noise.exponential_(generator=generator)
        self._choose(hidden)

    def _choose(self, hidden: Tensor) -> None:
        """Draws the next token of each row that has not ended: argmax p / E with E exponential is a draw from p."""
        logits = self._target.logits(hidden) / self._temperature
        token = (logits - self._noise.log()).argmax(-1)
        going = ~self._ended & (self._position < self._last)
        self._position += going
        self._ids[self._row, self._position] = torch.where(going, token, self._ids[self._row, self._position])
        self._token.copy_(self._ids[self._row, self._position][:, None])
        ended = (token[:, None] == self._eos).any(-1) | (self._position >= self._last)
        self._ended |= ended

    def _capture(self) -> None:
        """Captures a step for the bound at hand; what warming up changes is put back."""
        assert self._graphs is not None
        state = (self._ids, self._token, self._position, self._ended)
        saved = [tensor.clone() for tensor in state]
        try:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._decode()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._decode()
            self._graphs[self._bound] = graph
        except RuntimeError as error:
            self.obstacle = str(error).splitlines()[0]
            self._graphs = None
        # Keys and values warming up wrote lie at places that the next real steps write again.
        for tensor, before in zip(state, saved, strict=True):
            tensor.copy_(before)
