"""How many bytes one decoded token must bring from memory: the limit that speed is compared with."""

from dataclasses import dataclass

from dspark_compiler.artifact import Manifest, nbytes


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
    params = [manifest.params[name] for name in decode.params]
    # Weights that are multiplied lie in panels, with three dimensions; a table of V rows is looked up.
    tables = [param for param in params if len(param.shape) == 2 and param.shape[0] == manifest.model.vocab_size]
    if manifest.target.kind == "onnxruntime":
        tables = tables[1:]  # there a head is a table as well, perhaps the embedding's
    weights = sum(nbytes(param) for param in params)
    weights -= sum(nbytes(param) - nbytes(param) // param.shape[0] for param in tables)
    # What policies keep beside them is written by a step, not read.
    read = ("k_cache", "v_cache", "k_scale", "v_scale")
    caches = sum(nbytes(manifest.states[name]) for name in decode.states if name.partition(".")[0] in read)
    return TokenTraffic(weights, caches / (manifest.max_batch * manifest.kv.slots), manifest.kv.slots)
