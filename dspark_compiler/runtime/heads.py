"""The strategy an artifact decodes with: rounds of its drafter, or one token at a time."""

from dspark_compiler.artifact import HeadsInfo, Manifest
from dspark_compiler.errors import ArtifactError
from dspark_compiler.runtime.costs import LiveCosts, RoundCosts
from dspark_compiler.runtime.drafts import make_proposer
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.scheduler import Admission, AsyncScheduler, admit
from dspark_compiler.runtime.speculative import Live, Observer, Speculative
from dspark_compiler.runtime.step_times import measure
from dspark_compiler.runtime.strategy import Autoregressive, Strategy


def make_strategy(
    executor: Executor,
    manifest: Manifest,
    *,
    heads: bool = True,
    paced: bool = True,
    observer: Observer | None = None,
) -> Strategy:
    """How to decode with an artifact.

    Without ``heads``, or where it has none, one token at a time. Not ``paced``, each round drafts a whole block,
    however little of it stays: so drafters are measured. If the artifact does not know what its steps take, that is
    measured here, in less than the time of a hundred of them, on a GPU in half a second.

    Raises:
        ArtifactError: what the manifest says of the heads does not fit its entry points.
    """
    info = manifest.heads
    if info is None or not heads:
        return Autoregressive(executor)
    _check(executor, info)
    proposer = make_proposer(executor, info)
    if not paced:
        return Speculative(executor, proposer, info.block_size, observer=observer)
    times = info.times or measure(executor)
    table, live = RoundCosts(times), LiveCosts(times)

    def make_pace(costs: RoundCosts = table) -> Pace:
        # Reading confidences is a second wait for a device that has its own clock.
        admission: Admission = AsyncScheduler() if executor.device.is_late else admit
        return Pace(costs, info.block_size, info.temperatures, admission, info.shifts)

    return Speculative(executor, proposer, info.block_size, make_pace, observer, Live(make_pace(live), live))


def _check(executor: Executor, heads: HeadsInfo) -> None:
    widths = executor.round_widths
    timed = widths if heads.times is None else tuple(step.tokens for step in heads.times.verify)
    drafts = heads.block_size if heads.type == "ngram" else executor.block_size
    for field, holds in (
        ("entry_points: no verify of two tokens or more that has its accept", bool(widths) and widths[-1] > 1),
        (
            f"heads.block_size {heads.block_size}: the entry point draft makes {drafts} tokens",
            drafts == heads.block_size,
        ),
        (f"heads.times.verify: widths {timed}, the entry points have {widths}", timed == widths),
        ("heads.temperatures: not one a draft", len(heads.temperatures) in (0, heads.block_size)),
        ("heads.shifts: not one a draft", len(heads.shifts) in (0, heads.block_size)),
    ):
        if not holds:
            raise ArtifactError(f"manifest.json: {field}; edited or damaged, compile again")
