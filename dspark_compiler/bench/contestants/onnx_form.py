"""What a decoder's ONNX file takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FORM = "form.json"


@dataclass(frozen=True)
class Form:
    """Names of inputs and outputs by their part.

    Attributes:
        path: the file.
        origin: how it was made, for people.
        ids: token ids [1,N].
        mask: ones for all tokens, past ones among them, [1,P+N]; None where there is none.
        positions: [1,N]; None where there are none.
        past: keys and values [1,G,P,D]: G and D by name.
        dtypes: the inputs' types, as numpy names them.
        logits: the output [1,N,V], or [1,1,V] of the last token.
        branch: what says that there is a past, in merged decoders; None in others.
        present: the outputs that are the next step's past, in the same order.
    """

    path: str
    origin: str
    ids: str
    mask: str | None
    positions: str | None
    past: Mapping[str, Sequence[int]]
    dtypes: Mapping[str, str]
    logits: str
    present: Sequence[str]
    branch: str | None = None
