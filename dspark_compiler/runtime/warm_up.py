"""Everything once before the first answer, which then need not wait for what is loaded or captured at first use."""

from dspark_compiler.runtime.dry_rounds import DryRounds
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.rounds import Anchors

# Calls run one by one when they are made first, and those that follow each other are captured as one the second time.
_TIMES = 2


def warm_up(executor: Executor, *, rounds: bool) -> None:
    """Runs prefills, plain steps and, if wanted, rounds of every width after every other; no sequence outlives it."""
    dry = DryRounds(executor)
    for width in executor.prefill_widths:
        dry.prefill(min(width, executor.max_seq_len))
    for _ in range(_TIMES):
        step = dry.step(0)
        dry.step(1, step)
    widths = executor.round_widths if rounds else ()
    for _ in range(_TIMES):
        for width in widths:
            if width > executor.exact_rows(0, 0):
                continue
            anchors = _round(executor, dry, dry.anchors(0), width)
            for following in widths if executor.chains_rounds else ():
                if width + following <= executor.exact_rows(0, 0):
                    _round(executor, dry, anchors, following)


def _round(executor: Executor, dry: DryRounds, anchors: Anchors, width: int) -> Anchors:
    """Makes a round of this width; returns where the next one begins."""
    with executor.together():
        verdict = dry.speculate(anchors, dry.draft(anchors), width)
    assert verdict.accepted is not None  # waits for it
    return verdict.anchors
