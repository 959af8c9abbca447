"""Plain decoding draws its tokens on the device: logits are read by the host only when someone asks for them."""

from dataclasses import dataclass
from typing import ClassVar

from dspark_compiler.errors import PassError
from dspark_compiler.graph.program import EntryKind, Program
from dspark_compiler.graph.remarks import Match
from dspark_compiler.passes.base import Pass, PassResult
from dspark_compiler.passes.decode_heads.entries import accept_entry


@dataclass(frozen=True)
class DrawTokens(Pass):
    """Adds ``accept_1``, which takes what ``decode`` returns: a round without drafts."""

    name: ClassVar[str] = "draw_tokens"

    def apply(self, program: Program) -> PassResult:
        """See Pass."""
        decode = next((entry for entry in program.entries.values() if entry.kind is EntryKind.DECODE), None)
        if decode is None:
            raise PassError(f"{self.name}: the program has no entry point decode")
        program.entries["accept_1"] = accept_entry(decode, None)
        return PassResult(program, (Match("accept_1", f"entry point made, for the logits of {decode.name}"),))
