"""A compiled artifact with a budget: memory, slots, and tokens, from a tiny model."""

import ctypes
import gc
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from dspark_compiler import Engine, SamplingParams, compile, load
from dspark_compiler.artifact import Artifact, nbytes
from dspark_compiler.compare.compiled import compiled_logits, decode_first
from dspark_compiler.errors import CheckFailedError, InputError
from dspark_compiler.runtime.executor import Executor
from tests.threads import check_threads
from tests.tiny_models import TINY

_BUDGET, _LONGEST = 64, 400
_FOLDER = Path(mkdtemp(prefix="dspark-pruned-"))


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    shutil.rmtree(_FOLDER)


@cache
def _source(name: str = "llama", positions: int = 96, **sizes: int) -> str:
    folder = _FOLDER / "-".join(map(str, (name, positions, *sizes.values())))
    model = TINY[name](**sizes)
    model.config.max_position_embeddings = positions
    model.save_pretrained(folder)
    return str(folder)


@cache
def _artifact(
    policy: str | None = None,
    budget: int | None = _BUDGET,
    name: str = "llama",
    source: str | None = None,
    **options,
) -> Artifact:
    # What is verified at the full width: test_rounds_artifact.py.
    sizes = {"max_seq_len": _LONGEST, "prefill_widths": (8,), "verify_width": 4, "max_batch": 2}
    options = sizes | {"check": False} | options
    output = _FOLDER / f"{name}-{policy}-{budget}-{len(list(_FOLDER.iterdir()))}.dspark"
    return compile(source or _source(name, _LONGEST), output=output, kv_budget=budget, kv_policy=policy, **options)


def _tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, count).tolist()


def _decoded(executor: Executor, tokens: list[int]) -> np.ndarray:
    return np.stack([decode_first(executor, token, position).copy() for position, token in enumerate(tokens)])


# Other tests here need these artifacts too, but for expected-attention's; snapkv alone: test_onnxruntime_contract.py.
@pytest.mark.parametrize("policy", ["window", "keydiff", "expected-attention", "tova", "h2o", "snapkv+h2o"])
def test_tokens_are_the_unpruned_ones_up_to_the_budget(policy: str) -> None:
    pruned, whole = (load(artifact.path) for artifact in (_artifact(policy), _artifact(None, None)))
    params = SamplingParams(max_new_tokens=_BUDGET - 19, ignore_eos=True)
    prompts = [_tokens(20), _tokens(11, seed=1)]
    expected = [completion.tokens for completion in whole.complete(prompts, params)]
    assert [completion.tokens for completion in pruned.complete(prompts, params)] == expected


_VARIANTS = [
    ("window", {}),
    ("tova", {"kv_dtype": "int8"}),
    ("snapkv+h2o", {}),
    ("h2o", {"kv_dtype": "float8_e4m3"}),
    ("h2o", {"name": "gpt_oss"}),
    ("expected-attention", {"name": "qwen3"}),
]


@pytest.mark.parametrize(("policy", "options"), _VARIANTS)
def test_verifying_is_decoding_bit_for_bit_far_beyond_the_budget(policy: str, options: dict[str, str]) -> None:
    executor = Executor(_artifact(policy, **options))
    tokens = _tokens(250)
    verified = np.concatenate([chunk.copy() for chunk in compiled_logits(executor, tokens)])
    np.testing.assert_array_equal(verified, _decoded(executor, tokens))


def test_threads_change_no_bit() -> None:
    pruned = [_artifact(policy, **options).path for policy, options in _VARIANTS]
    check_threads(_artifact(None, None).path, *pruned)


@pytest.mark.parametrize("policy", ["window", "tova", "h2o", "snapkv+h2o"])
def test_sequences_of_a_batch_do_not_know_of_each_other(policy: str) -> None:
    engine = load(_artifact(policy).path)
    params = SamplingParams(max_new_tokens=90, ignore_eos=True)
    prompts = [_tokens(150), _tokens(30, seed=1)]
    together = [completion.tokens for completion in engine.complete(prompts, params)]
    alone = [engine.complete([prompt], params)[0].tokens for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_windowed_layers_hold_their_window(name: str) -> None:
    plain = {"verify_width": 1, "max_batch": 1}  # of decode alone
    pruned = _artifact("window", name=name, **plain)
    slots = {state.shape[2] for ref, state in pruned.manifest.states.items() if ref.startswith("slot_position.")}
    assert min(slots) < 20
    if name == "mistral":  # all layers slide: nothing is lost, however long it gets
        tokens = _tokens(200)
        whole = _decoded(Executor(_artifact(None, None, name=name, **plain)), tokens)
        np.testing.assert_allclose(_decoded(Executor(pruned), tokens), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", ["window", "keydiff"])
def test_memory_for_keys_and_values_is_proportional_to_the_budget(policy: str) -> None:
    def cache_bytes(artifact: Artifact) -> int:
        states = artifact.manifest.states.items()
        return sum(nbytes(state) for ref, state in states if ref.startswith(("k_cache.", "v_cache.")))

    whole = cache_bytes(_artifact(None, None))
    assert cache_bytes(_artifact(policy)) == pytest.approx(whole * _BUDGET / _LONGEST, rel=0.01)
    loaded = Executor(_artifact(policy))
    assert loaded.cache_bytes < whole


def test_generate_says_how_many_slots_are_used() -> None:
    engine = load(_artifact("tova").path)
    stream = engine.generate(_tokens(150), SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert len(list(stream)) >= 0
    assert stream.completion.kv_slots == _BUDGET


def _bytes_in_use() -> int:
    """What the process has allocated and not freed, as the C library counts it."""

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")]
        _fields_ += [(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")]

    mallinfo2: Callable[[], Info] = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Info  # type: ignore[attr-defined]
    gc.collect()
    info = mallinfo2()
    return info.uordblks + info.hblkhd


@cache
def _long() -> Artifact:
    """Of one layer, for far more tokens than the model has positions; these are rotated."""
    source = _source("llama", 96, num_hidden_layers=1)
    return _artifact(None, 512, source=source, max_seq_len=100_000, max_batch=1, verify_width=1)


def test_a_hundred_thousand_tokens_take_no_memory() -> None:
    artifact = _long()
    total = artifact.manifest.max_seq_len
    executor = Executor(artifact)
    buffers = np.zeros((4, 1), np.int64)
    tokens, positions, lengths, counts = buffers
    counts[0] = 1

    def advance(until: int) -> None:
        while positions[0] < until:
            logits = executor.decode(tokens, positions, lengths, counts)
            tokens[0] = 3 + int(logits[0, 3:].argmax())
            positions[0] += 1
            lengths[0] += 1
            del logits

    used = []
    for quarter in range(1, 5):
        advance(quarter * total // 4)
        used.append(_bytes_in_use())
    # What grows with tokens grows in every quarter; the C library's own steps are once.
    assert np.diff(used).min() <= 0


def test_a_prompt_longer_than_a_sequence_is_refused() -> None:
    engine: Engine = load(_artifact("tova").path)
    with pytest.raises(InputError, match=f"the prompt has {_LONGEST + 1} tokens, the artifact holds {_LONGEST}"):
        engine.generate(_tokens(_LONGEST + 1))


def test_budgets_and_policies_that_cannot_be(tmp_path: Path) -> None:
    options = {"max_seq_len": _LONGEST, "output": tmp_path / "x.dspark", "check": False}
    for given, message in (
        ({"kv_budget": 9}, r"--kv-budget 9: .* give at least \d+"),
        ({"kv_budget": 64, "kv_policy": "best"}, "--kv-policy best: 'best' is not one of window"),
        ({"kv_budget": 64, "kv_policy": "kvzap"}, "--kv-policy kvzap: needs trained weights, --kv-weights FILE"),
        ({"kv_budget": 64, "kv_policy": "a,b"}, "several are for --max-quality-loss"),
    ):
        with pytest.raises(InputError, match=message):
            compile(_source(), **options | given)
    assert list(tmp_path.iterdir()) == []


def test_positions_in_a_table_cannot_be_exceeded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks its 96 positions up in a table; ask for at most that"):
        compile(_source("gpt2"), output=tmp_path / "x", max_seq_len=200, kv_budget=64, check=False)


def test_rotated_positions_can() -> None:
    artifact = _long()
    assert artifact.manifest.kv.pruning is not None
    assert artifact.manifest.kv.pruning.policy == "h2o"
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    assert len(load(artifact.path).complete([_tokens(600)], params)[0].tokens) == 20


@cache
def _with_words() -> str:
    """A tiny model that reads text."""
    common = ["[UNK]", "the", "of", "and", "to", "a", "in", "was", "it", "he", "his"]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(common)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    folder = Path(_source("llama", _LONGEST + 1))
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(folder)


def test_the_gate_chooses_compiles_and_reports(tmp_path: Path) -> None:
    artifact = compile(
        _with_words(),
        output=tmp_path / "x.dspark",
        max_seq_len=128,
        prefill_widths=(8,),
        kv_policy="window,tova",
        max_quality_loss=1e9,
        check=False,
    )
    report = json.loads((artifact.path / "report.json").read_text())
    chosen = report["quality"]["chosen"]
    assert artifact.manifest.kv.slots == chosen["budget"] == 32  # of 64, 32, 16: the last is smaller than its edges
    assert artifact.manifest.kv.pruning is not None
    assert artifact.manifest.kv.pruning.policy == chosen["policy"] == "window"
    assert report["quality"]["trials"][-1]["policy"] == "tova"
    assert "give at least" in report["quality"]["trials"][-1]["error"]


def test_the_gate_fails_where_nothing_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="--max-quality-loss 0: no policy holds it; window comes closest"):
        compile(
            _with_words(),
            output=tmp_path / "x.dspark",
            max_seq_len=128,
            prefill_widths=(8,),
            kv_policy="window",
            kv_budget=40,
            max_quality_loss=0.0,
            check=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_verify_may_confirm_what_the_smallest_layer_holds() -> None:
    artifact = _artifact("pyramid:window", verify_width=8)
    pruning = artifact.manifest.kv.pruning
    assert pruning is not None
    assert Executor(artifact).exact_rows(0, 0) == pruning.room < artifact.manifest.kv.slots
