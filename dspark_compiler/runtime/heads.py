"""The strategy an artifact decodes with: rounds of its drafter, or one token at a time."""

from dspark_compiler.artifact import Manifest
from dspark_compiler.runtime.costs import RoundCosts
from dspark_compiler.runtime.drafts import make_proposer
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.scheduler import Admission, AsyncScheduler, admit
from dspark_compiler.runtime.speculative import Observer, Speculative
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
    measured here, in less than the time of a hundred of them.
    """
    info = manifest.heads
    if info is None or not heads:
        return Autoregressive(executor)
    proposer = make_proposer(executor, info)
    if not paced:
        return Speculative(executor, proposer, info.block_size, observer=observer)
    costs = RoundCosts(info.times or measure(executor))

    def make_pace() -> Pace:
        # Reading confidences is a second wait for a device that has its own clock.
        admission: Admission = admit if manifest.target.kind == "cpu" else AsyncScheduler()
        return Pace(costs, info.block_size, info.temperatures, admission)

    return Speculative(executor, proposer, info.block_size, make_pace, observer)
