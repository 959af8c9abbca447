"""A loaded artifact that continues prompts."""

import operator
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager

from dspark_compiler.artifact import Artifact
from dspark_compiler.errors import ArtifactError, DSparkError, InputError
from dspark_compiler.runtime.chat import Message, load_chat_template, read_json
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.heads import make_strategy
from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.sequence import Completion, SequenceState
from dspark_compiler.runtime.speculative import Observer
from dspark_compiler.runtime.strategy import run
from dspark_compiler.runtime.tokenizer import Tokenizer
from dspark_compiler.runtime.warm_up import warm_up

Prompt = str | Sequence[int]


class Stream(Iterator[str]):
    """The pieces of one answer as they come. Closing it (or dropping it) before the end stops the generation."""

    def __init__(self, sequence: SequenceState, rounds: Generator[None]) -> None:
        self._sequence = sequence
        self._pieces = _read(sequence, rounds)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the generation where it is."""
        self._pieces.close()

    @property
    def completion(self) -> Completion:
        """Tokens, text and timings, once the stream is exhausted.

        Raises:
            DSparkError: it is not.
        """
        if self._sequence.finish_reason is None:
            raise DSparkError("the stream has not reached its end; read all pieces first")
        return self._sequence.completion()


# Not a method: a generator that held its Stream would outlive it, and keep the engine busy.
def _read(sequence: SequenceState, rounds: Generator[None]) -> Generator[str]:
    with closing(rounds):
        for _ in rounds:
            if piece := sequence.read_text():
                yield piece


class Engine:
    """Runs one artifact. Calls from several threads wait for each other.

    ``heads`` False decodes token by token though the artifact could draft. ``observer`` hears what became of drafts,
    and not ``paced`` each round drafts a whole block: so drafters are measured.

    Raises:
        ArtifactError: the artifact's library, weights or tokenizer files cannot be used.
        InputError: a number of threads that cannot be had.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        heads: bool = True,
        paced: bool = True,
        observer: Observer | None = None,
    ) -> None:
        self.artifact = artifact
        self.executor = Executor(artifact, threads=threads)
        self._speculative = heads and artifact.manifest.heads is not None
        self._strategy = make_strategy(self.executor, artifact.manifest, heads=heads, paced=paced, observer=observer)
        text = artifact.read_text("tokenizer.json")
        self.tokenizer = None if text is None else Tokenizer(text, str(artifact.path / "tokenizer.json"))
        self._chat_template = load_chat_template(artifact)
        self._eos_ids = _eos_ids(artifact)
        self._lock = threading.Lock()
        self._owner: int | None = None

    def warm_up(self) -> None:
        """Runs everything once, so that the first answers wait for nothing that is loaded or captured at first use.

        For servers, before they take requests; it takes a fraction of a second on a GPU.
        """
        with self._turn():
            warm_up(self.executor, rounds=self._speculative)

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Continues a text or token ids; iterate for the pieces of the answer.

        Raises:
            InputError: an empty or too long prompt, an id outside the vocabulary, text without a tokenizer.
        """
        return self._stream(self._encode(prompt), params)

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Stream:
        """Answers a conversation: mappings with "role" and "content", put through the model's chat template.

        Raises:
            InputError: as ``generate``; no chat template, or one that refuses the messages.
        """
        return self._stream(self.chat_ids(messages), params)

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids for a conversation."""
        if self._chat_template is None:
            raise InputError(f"{self.artifact.path}: has no chat template; give the prompt as the model expects it")
        # The template writes the special tokens itself.
        return self._need_tokenizer().encode(self._chat_template.render(messages), special=False)

    def complete(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continues up to ``max_batch`` prompts together; each result is what the prompt alone would give.

        ``params`` are those of all prompts, or of each.

        Raises:
            InputError: as ``generate``, or more prompts than the artifact was compiled for.
        """
        batch = self.artifact.manifest.max_batch
        if len(prompts) > batch:
            raise InputError(
                f"{len(prompts)} prompts, but the artifact holds {batch}; compile it with --max-batch {len(prompts)}"
            )
        ids = [self._encode(prompt) for prompt in prompts]
        each = params if isinstance(params, Sequence) else [params] * len(ids)
        sequences = [self._sequence(row, *given) for row, given in enumerate(zip(ids, each, strict=True))]
        for _ in self._rounds(sequences):
            pass
        return [sequence.completion() for sequence in sequences]

    def _stream(self, ids: Sequence[int], params: SamplingParams | None) -> Stream:
        sequence = self._sequence(0, ids, params)
        return Stream(sequence, self._rounds([sequence]))

    def _rounds(self, sequences: Sequence[SequenceState]) -> Generator[None]:
        with self._turn():
            yield from run(self.executor, self._strategy, sequences)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # Waiting for oneself would be forever.
        if self._owner == threading.get_ident():
            raise DSparkError("another answer of this engine is still streaming here; read it to its end or close it")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        return self._need_tokenizer().encode(prompt) if prompt else []

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{self.artifact.path}: has no tokenizer.json, so it takes no text; give token ids (--prompt-ids)"
            )
        return self.tokenizer

    def _sequence(self, row: int, ids: Sequence[int], params: SamplingParams | None) -> SequenceState:
        manifest = self.artifact.manifest
        prompt = _checked(ids, manifest.model.vocab_size)
        params = params or SamplingParams()
        if len(prompt) > manifest.max_seq_len:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, the artifact holds {manifest.max_seq_len}; "
                "shorten it or compile with a larger --max-seq-len"
            )
        if params.stop and self.tokenizer is None:
            raise InputError(f"{self.artifact.path}: has no tokenizer.json, so stop strings cannot be found")
        return SequenceState(
            row,
            prompt,
            params,
            # The last token is never fed back, so it needs no room in the cache.
            room=manifest.max_seq_len - len(prompt) + 1,
            used_slots=self.executor.used_slots,
            eos_ids=self._eos_ids,
            tokenizer=self.tokenizer,
            speculative=self._speculative,
        )


def load(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    threads: int | None = None,
    heads: bool = True,
    device: int = 0,
) -> Engine:
    """Loads an artifact; needs neither torch nor the compiler.

    ``verify`` compares the files' SHA-256 with the manifest. ``threads`` bounds the threads kernels use (None: all
    cores); the first engine of a process decides. ``heads`` False leaves the artifact's drafter unused. ``device`` is
    the GPU's number, in the order its driver has them.

    Raises:
        ArtifactError: missing, damaged, of a newer format, or for another machine.
        InputError: a number of threads or a device that cannot be had.
    """
    return Engine(Artifact.open(path, verify=verify, device=device), threads=threads, heads=heads)


def _checked(ids: Sequence[int], vocab_size: int) -> list[int]:
    if len(ids) == 0:
        raise InputError("the prompt is empty; give at least one token")
    prompt = []
    for place, item in enumerate(ids):
        try:
            token = operator.index(item)
        except TypeError:
            raise InputError(f"prompt token {place} is {item!r:.40}, not an integer") from None
        if not 0 <= token < vocab_size:
            raise InputError(
                f"prompt token {place} is {token}, outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})"
            )
        prompt.append(token)
    return prompt


def _eos_ids(artifact: Artifact) -> frozenset[int]:
    """generation_config.json knows best which tokens end an answer; it gives one id or a list."""
    value = read_json(artifact, "generation_config.json").get("eos_token_id")
    if value is None:
        return frozenset(artifact.manifest.model.eos_token_ids)
    ids = value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in ids):
        raise ArtifactError(f"{artifact.path / 'generation_config.json'}: eos_token_id {value!r:.60} is not a token id")
    return frozenset(ids)
