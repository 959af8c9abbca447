"""What nobody uses goes: operators, param placeholders, and params no entry point refers to any more.

Inputs stay, used or not: they are what the caller gives. So do operators that write to the cache.
"""

from dataclasses import dataclass
from typing import ClassVar

from dspark_compiler.graph.program import Program
from dspark_compiler.graph.remarks import Match
from dspark_compiler.graph.rewrite import drop_unused_params, erase_dead
from dspark_compiler.passes.base import Pass, PassResult


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """See the module."""

    name: ClassVar[str] = "eliminate_dead_code"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        erased = [
            Match(name, "nobody uses it", entry.name)
            for entry in program.entries.values()
            for name in erase_dead(entry.graph.graph)
        ]
        dropped = [Match(ref, "param nobody reads") for ref in drop_unused_params(program)]
        return PassResult(program, (*erased, *dropped))
