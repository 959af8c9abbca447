"""What nobody uses goes: operators, param placeholders, and params no entry point refers to any more.

Inputs stay, used or not: they are what the caller gives. So do operators that write to the cache.
"""

from dataclasses import dataclass
from typing import ClassVar

from dspark_compiler.graph.program import Program
from dspark_compiler.graph.rewrite import drop_unused_params, erase_dead
from dspark_compiler.passes.base import Pass, PassResult


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """See the module."""

    name: ClassVar[str] = "eliminate_dead_code"

    def apply(self, program: Program) -> PassResult:
        """See Pass.apply."""
        erased = sum(erase_dead(entry.graph.graph) for entry in program.entries.values())
        dropped = drop_unused_params(program)
        return PassResult(program, erased > 0 or dropped)
