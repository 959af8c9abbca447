"""How many bytes one decoded token must bring from memory: the limit that speed is compared with."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dspark_compiler.artifact import Manifest, ParamInfo, nbytes

_PANELS = ("cpu", "cuda")  # targets


@dataclass(frozen=True)
class TokenTraffic:
    """Bytes one step of one sequence reads: all of ``weights``, and ``slot`` for each token in the cache.

    The cache has ``slots``; a longer context reads no more. Every expert of a mixture counts, and so does the whole
    cache where a window would do: an upper bound there.
    """

    weights: int
    slot: float
    slots: int

    def bytes_at(self, context: float) -> float:
        """Bytes read by a step in a context of so many tokens."""
        return self.weights + min(context, self.slots) * self.slot


def token_traffic(manifest: Manifest) -> TokenTraffic:
    """What the artifact's decode step reads."""
    (decode,) = (entry for entry in manifest.entry_points.values() if entry.kind == "decode")
    weights = sum(nbytes(manifest.params[name]) for name in decode.params)
    weights -= sum(nbytes(param) - nbytes(param) // param.shape[0] for param in _looked_up(manifest, decode.params))
    # What policies keep beside them is written by a step, not read.
    read = ("k_cache", "v_cache", "k_scale", "v_scale")
    caches = sum(nbytes(manifest.states[name]) for name in decode.states if name.partition(".")[0] in read)
    return TokenTraffic(weights, caches / (manifest.max_batch * manifest.kv.slots), manifest.kv.slots)


def _looked_up(manifest: Manifest, names: Sequence[str]) -> list[ParamInfo]:
    """Params of which a step reads a row: tables of a row for each token of the vocabulary."""
    tables: dict[str, list[ParamInfo]] = defaultdict(list)
    for name in names:
        param = manifest.params[name]
        if len(param.shape) == 2 and param.shape[0] == manifest.model.vocab_size:
            # Codes and scales of a weight are one table.
            tables[name.removesuffix(".codes").removesuffix(".scales").removesuffix(".offsets")].append(param)
    parts = sorted(tables.values(), key=lambda table: sum(map(nbytes, table)))
    # Where weights that are multiplied lie in panels, those have three dimensions. Elsewhere the head is a table as
    # well, perhaps the embedding's; of two it is the smaller, as heads are quantized and embeddings of their own not.
    return [param for table in (parts if manifest.target.kind in _PANELS else parts[1:]) for param in table]
