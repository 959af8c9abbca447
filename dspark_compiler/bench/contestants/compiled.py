"""The artifact, through the runtime's own loop and sampling."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dspark_compiler.artifact import Artifact
from dspark_compiler.bench.contestants.base import Setup
from dspark_compiler.bench.memory import Memory, host_memory
from dspark_compiler.errors import DeviceError
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.heads import make_strategy
from dspark_compiler.runtime.ort_provider import choose_provider
from dspark_compiler.runtime.ort_session import session_options
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.strategy import run


class Compiled:
    """See Contestant; ``heads`` False leaves the artifact's drafter unused."""

    def __init__(self, setup: Setup, *, heads: bool = True) -> None:
        # The parent has compared the hashes already.
        artifact = Artifact.open(Path(setup.artifact), verify=False, device=setup.number)
        self._executor = Executor(artifact, threads=setup.threads)
        self._strategy = make_strategy(self._executor, artifact.manifest, heads=heads)
        target = artifact.manifest.target
        self.options: Mapping[str, str] = {
            "compiler": artifact.manifest.compiler_version,
            "tvm": artifact.manifest.tvm_version,
            "target": f"{target.kind} {target.arch}",
        }
        if target.kind == "onnxruntime":
            import onnxruntime

            self.options = {
                **self.options,
                "onnxruntime": onnxruntime.__version__,
                "provider": choose_provider(artifact).name,
                "intra-op threads": str(setup.threads),
                "execution": "sequential",
                **session_options(artifact, artifact.manifest.entry_points["decode"]),
            }
        if target.kind in ("cpu", "onnxruntime"):
            self.memory = host_memory()
        else:  # the GPU's, which takes its weights and caches before the first prompt, and gives nothing back
            self.memory = Memory(self._executor.device.peak_memory_bytes, lambda: None)
        if heads and (info := artifact.manifest.heads) is not None:
            self.options = {**self.options, "heads": f"{info.name} ({info.type}, {info.block_size} drafts)"}

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Iterator[Sequence[int]]:
        """See Contestant."""
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        sequence = SequenceState(0, list(prompt), params, room=new_tokens, eos_ids=frozenset(), tokenizer=None)
        taken = 0
        for _ in run(self._executor, self._strategy, [sequence]):
            yield sequence.tokens[taken:]
            taken = len(sequence.tokens)
        if (obstacle := self._executor.device.obstacle) is not None:
            raise DeviceError(f"no speed to report: {obstacle}")
