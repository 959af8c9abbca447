"""How a quantized weight is kept: the type of its codes, and how many of a row's columns share a scale."""

from dataclasses import dataclass
from typing import Literal

CodeType = Literal["int8", "int4", "float8_e4m3"]
CODE_TYPES: tuple[CodeType, ...] = ("int8", "int4", "float8_e4m3")


@dataclass(frozen=True)
class WeightFormat:
    """W[n, k] = codes[n, k] * scales[n, k // group] (+ offsets[n, k // group]).

    Attributes:
        codes: int8, int4 (-8 to 7) or float8_e4m3 (up to 448).
        group: columns that share a scale; 0: all of a row.
        offsets: whether groups have an offset, as checkpoints made elsewhere may.
    """

    codes: CodeType
    group: int = 0
    offsets: bool = False

    @property
    def tag(self) -> str:
        """The format as a word: ``int8``, ``int4-g128``, ``int4-g32-offsets``."""
        return self.codes + (f"-g{self.group}" if self.group else "") + ("-offsets" if self.offsets else "")

    @classmethod
    def parse(cls, tag: str) -> "WeightFormat | None":
        """The format of that tag; None for other types of weights."""
        codes, *rest = tag.split("-")
        known = next((code for code in CODE_TYPES if code == codes), None)
        if known is None:
            return None
        group = next((int(part[1:]) for part in rest if part.startswith("g")), 0)
        return cls(known, group, "offsets" in rest)

    @property
    def bits(self) -> int:
        """Of one code."""
        return 4 if self.codes == "int4" else 8

    def columns(self, depth: int) -> int:
        """Columns that share a scale, in a row of ``depth``."""
        return self.group or depth

    def groups(self, depth: int) -> int:
        """Scales of a row of ``depth`` columns."""
        return depth // self.columns(depth)
