"""Artifacts of the same model with other cache budgets, compiled for as long as they are needed."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.tasks.base import Progress
from dspark_compiler.compare.origin import recorded_config, source_of
from dspark_compiler.driver import compile_model
from dspark_compiler.errors import InputError


class Variants:
    """Makes an artifact again, with ``kv_policy`` and ``kv_budget`` changed.

    ``model`` None is the model it was compiled from; ``weights`` are for policies that need some.

    Raises:
        InputError: it is not known what it was compiled from, or how, or its own cache is pruned already.
    """

    def __init__(self, artifact: Artifact, model: str | None, weights: Path | None, progress: Progress) -> None:
        manifest = artifact.manifest
        if manifest.kv.pruning is not None:
            raise InputError(
                f"{artifact.path}: its cache has {manifest.kv.slots} slots for {manifest.max_seq_len} tokens; "
                "budgets are compared with an artifact that keeps all, compile one without --kv-budget"
            )
        self._source = source_of(artifact, model)
        # Schedules found by tuning are in the records already; it need not be done again for each.
        self._config = dataclasses.replace(recorded_config(artifact), tune_trials=0, dump_ir=None, check=False)
        self._weights = weights
        self._progress = progress

    @contextmanager
    def compiled(self, policy: str, budget: int) -> Iterator[Artifact]:
        """The variant, in a temporary folder that is gone afterwards."""
        with TemporaryDirectory(prefix="dspark-sweep-") as folder:
            output = Path(folder) / "variant.dspark"
            config = dataclasses.replace(
                self._config, kv_policy=policy, kv_budget=budget, kv_weights=self._weights, output=output
            )
            # One stage for the whole compile: its own stages would drown the sweep's.
            self._progress(f"compile {policy} {budget}", 0, 0)
            yield compile_model(self._source, config)
