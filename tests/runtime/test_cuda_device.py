"""Running on a GPU, on a fake one that does nothing before it must: the same results as on the host, in fewer calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark_compiler.artifact import Artifact, ArtifactWriter, StepTime, StepTimes, TensorInfo
from dspark_compiler.errors import ArtifactError, DeviceError
from dspark_compiler.runtime import lanes
from dspark_compiler.runtime.calls import Columns
from dspark_compiler.runtime.costs import LiveCosts, RoundCosts
from dspark_compiler.runtime.cpu_device import to_array
from dspark_compiler.runtime.drafts import CompiledDrafter
from dspark_compiler.runtime.executor import Executor
from dspark_compiler.runtime.gpu_device import GpuDevice
from dspark_compiler.runtime.pace import Pace
from dspark_compiler.runtime.rounds import Anchors
from dspark_compiler.runtime.sampling import SamplingInputs, SamplingParams
from dspark_compiler.runtime.scheduler import AsyncScheduler
from dspark_compiler.runtime.sequence import SequenceState
from dspark_compiler.runtime.speculative import Live, Speculative
from dspark_compiler.runtime.step_times import measure
from dspark_compiler.runtime.strategy import Autoregressive, Strategy, run
from dspark_compiler.runtime.warm_up import warm_up
from tests.runtime import toy, toy_heads
from tests.runtime.fake_cuda import FakeDevice

PROMPTS = [[1, 2, 3], [7] * 20, [30, 31, 32, 33, 34]]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(toy_heads.write(tmp_path_factory.mktemp("fake") / "toy.dspark", drafter=True, draws=True))


def tokens(executor: Executor, strategy: Strategy, params: SamplingParams) -> list[list[int]]:
    sequences = [
        SequenceState(row, prompt, params, room=toy.SLOTS - len(prompt) + 1, eos_ids=frozenset({4}), tokenizer=None)
        for row, prompt in enumerate(PROMPTS)
    ]
    for _ in run(executor, strategy, sequences):
        pass
    return [sequence.tokens for sequence in sequences]


def expected(eos: int = 4) -> list[list[int]]:
    reference = toy.Reference()
    return [reference.greedy(p, min(25, toy.SLOTS - len(p) + 1), eos=eos) for p in PROMPTS]


@pytest.mark.parametrize("captures", [True, False])
def test_plain_and_speculative_tokens_are_the_references(artifact: Artifact, captures: bool) -> None:
    executor = Executor(artifact, device=FakeDevice(captures=captures))
    params = SamplingParams(max_new_tokens=25)
    rounds = Speculative(executor, CompiledDrafter(executor), executor.block_size)
    for strategy in (Autoregressive(executor), rounds, Autoregressive(executor), rounds):
        assert tokens(executor, strategy, params) == expected()
    assert (executor.device.obstacle is None) == captures


def test_a_penalty_reads_logits(artifact: Artifact) -> None:
    params = SamplingParams(max_new_tokens=25, repetition_penalty=1.2)
    made = []
    for device in (None, FakeDevice()):
        executor = Executor(artifact, device=device)
        rounds = Speculative(executor, CompiledDrafter(executor), executor.block_size)
        made += [tokens(executor, strategy, params) for strategy in (Autoregressive(executor), rounds)]
    assert all(answer == made[0] for answer in made)


def test_every_call_is_captured_once_and_then_replayed(artifact: Artifact) -> None:
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    tokens(executor, Autoregressive(executor), SamplingParams(max_new_tokens=25))
    # Two widths of prefill, accept, decode of what the host knows, and of what accept drew.
    assert device.fake.log.count("run") == 5
    # Decode and accept a second time, as one.
    assert device.fake.log.count("capture") == 5 + 2
    assert device.fake.log.count("launch") > 20


def test_a_step_is_made_before_the_last_one_is_read(artifact: Artifact) -> None:
    executor = Executor(artifact, device=FakeDevice())
    strategy = Autoregressive(executor)
    sequence = SequenceState(0, [1], SamplingParams(30), room=30, eos_ids=frozenset(), tokenizer=None)
    steps = run(executor, strategy, [sequence])
    for _ in range(5):
        next(steps)
    assert executor.device.fake.waiting  # type: ignore[attr-defined]


def test_results_survive_the_next_call(artifact: Artifact) -> None:
    executor = Executor(artifact, device=FakeDevice())
    first = executor.prefill(0, [1, 2], 0, 0)
    copy = first.copy()
    for token in range(10):
        executor.prefill(0, [1, 2, token], 0, 0)
    np.testing.assert_array_equal(first, copy)


def test_verify_and_commit(artifact: Artifact) -> None:
    executor, reference = Executor(artifact, device=FakeDevice()), toy.Reference()
    for turn in range(3):
        prompt = [3, 4, 5, 6, 7 + turn]
        for row in range(toy.BATCH):
            executor.prefill(row, prompt, 0, 0)
        drafts = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
        logits = executor.verify(drafts, 5 + np.tile(np.arange(3), (3, 1)), [5, 5, 5])
        for row in range(toy.BATCH):
            for i in range(toy.VERIFY):
                np.testing.assert_array_equal(logits[row, i], reference.logits([*prompt, *drafts[row, : i + 1]]))
        executor.commit([5, 5, 5], [0, 2, 3])
        found = executor.decode([11] * 3, [5, 7, 8], [5, 7, 8], [1, 1, 1])
        for row, accepted in enumerate([0, 2, 3]):
            np.testing.assert_array_equal(found[row], reference.logits([*prompt, *drafts[row, :accepted], 11]))


def test_weights_that_do_not_fit_are_refused_with_numbers(artifact: Artifact) -> None:
    with pytest.raises(DeviceError, match=r"0\.00 GB of weights and 0\.00 GB of caches do not fit .* 0\.00 of its"):
        Executor(artifact, device=FakeDevice(memory=1000))


def test_a_failing_kernel_is_one_line(artifact: Artifact) -> None:
    device = FakeDevice()

    def fail(*arguments: object) -> None:
        raise RuntimeError("Traceback\n  a line\nCUDAError: cuLaunchKernel failed")

    call = device.call(artifact.manifest.entry_points["decode"], fail, device.tensors(artifact))
    call._function = fail
    with pytest.raises(DeviceError, match=r"^CUDAError: cuLaunchKernel failed \(1\.07 of the GPU's"):
        call()


def test_rounds_follow_each_other_without_the_host(artifact: Artifact) -> None:
    """Draft, verify, accept, commit and the next draft: nothing is done until somebody asks for the tokens."""
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    prompt, first = [5, 6], np.array([9, 10, 11])
    for row in range(toy.BATCH):
        executor.prefill(row, prompt, 0, 0)
    two, full = np.full(toy.BATCH, 2), np.full(toy.BATCH, toy_heads.GAMMA)
    sampling, numbers = SamplingInputs.of(toy.BATCH, {}), np.zeros((toy.BATCH, toy.VERIFY), np.float32)

    def rounds(count: int) -> list[list[int]]:
        anchors, made = Anchors(first, two, two), []
        for _ in range(count):
            drafts = executor.draft(anchors, numbers[:, :-1], sampling)
            verdict = executor.speculate(anchors, drafts, full, numbers, sampling)
            made.append((drafts, verdict))
            anchors = verdict.anchors
        found: list[list[int]] = [[] for _ in prompt * 2][: toy.BATCH]
        for drafts, verdict in made:
            for row, tokens in enumerate(found):
                tokens += [*drafts.tokens[row, : verdict.accepted[row]].tolist(), int(verdict.following[row])]
        return found

    rounds(4)  # captures everything
    waits: list[int] = []
    device.fake.on_wait = lambda event: waits.append(event)
    anchors = Anchors(first, two, two)
    for _ in range(2):
        drafts = executor.draft(anchors, numbers[:, :-1], sampling)
        anchors = executor.speculate(anchors, drafts, full, numbers, sampling).anchors
    assert not waits
    assert device.fake.waiting
    for row, tokens in enumerate(rounds(6)):
        assert tokens == toy.Reference().greedy([*prompt, int(first[row])], len(tokens), eos=None)


def test_a_step_and_a_round_are_one_launch_each(artifact: Artifact) -> None:
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    rounds = Speculative(executor, CompiledDrafter(executor), executor.block_size)
    for strategy in (Autoregressive(executor), rounds):
        sequence = SequenceState(0, [1], SamplingParams(40), room=47, eos_ids=frozenset(), tokenizer=None)
        turns = []
        for _ in run(executor, strategy, [sequence]):
            turns.append(device.fake.log.count("launch"))
        launches = np.diff(turns)[4:]
        # At the end none is made ahead.
        assert launches.max() == 1
        assert launches[:25].min() == 1
        assert sequence.tokens == toy.Reference().greedy([1], 40, eos=None)


def test_what_waits_to_be_launched_is_launched_for_those_who_wait_for_it(artifact: Artifact) -> None:
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    ones, numbers = np.ones(toy.BATCH, np.int64), np.zeros((toy.BATCH, 1), np.float32)
    sampling = SamplingInputs.of(toy.BATCH, {})
    expected = [executor.step(ones, ones, ones, ones, numbers, sampling).following for _ in range(3)][-1]
    before = device.fake.log.count("launch")
    with executor.together():
        step = executor.step(ones, ones, ones, ones, numbers, sampling)
        np.testing.assert_array_equal(step.following, expected)
    with executor.together():
        for _ in range(2):  # the second needs the inputs of the first
            step = executor.step(ones, ones, ones, ones, numbers, sampling)
    np.testing.assert_array_equal(step.following, expected)
    assert device.fake.log.count("launch") == before + 3


def test_a_paced_round_of_one_sequence_does_not_wait_for_its_confidences(artifact: Artifact) -> None:
    """The next round is made before this one is read, once two rounds are past."""
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    costs = RoundCosts(StepTimes(1.0, 0.01, (StepTime(toy.VERIFY, 1.02),)))
    pace = Pace(costs, executor.block_size, (), AsyncScheduler())
    live = Live(pace, LiveCosts(costs.times))
    strategy = Speculative(executor, CompiledDrafter(executor), executor.block_size, lambda: pace, live=live)
    sequence = SequenceState(0, [1], SamplingParams(40), room=47, eos_ids=frozenset(), tokenizer=None)
    waits: list[int] = []
    device.fake.on_wait = waits.append
    turns, ahead = [], 0
    for _ in run(executor, strategy, [sequence]):
        turns.append(len(waits))
        waits.clear()
        ahead += bool(device.fake.waiting)
    assert set(turns[4:-2]) == {1}, "the verdict"
    assert ahead > 5
    assert sequence.tokens == toy.Reference().greedy([1], 40, eos=None)


def test_making_the_next_step_waits_for_nothing_of_this_one(artifact: Artifact) -> None:
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    one, numbers = np.ones(toy.BATCH, np.int64), np.zeros((toy.BATCH, 1), np.float32)
    sampling = SamplingInputs.of(toy.BATCH, {})
    previous = executor.step(one, one, one, one, numbers, sampling)
    for turn in range(2, 6):
        previous_made = previous.following if turn == 2 else None
        waits: list[int] = []
        device.fake.on_wait = waits.append
        step = executor.step(previous, one * turn, one * turn, one, numbers, sampling)
        assert not waits
        assert previous_made is None or len(previous_made) == toy.BATCH
        assert previous.following is not None
        previous = step


def test_inputs_are_sent_again_when_they_change(artifact: Artifact) -> None:
    device, still = FakeDevice(), Executor(artifact)
    executor, ones = Executor(artifact, device=device), np.ones(toy.BATCH, np.int64)

    def sends(numbers: np.ndarray, sampling: SamplingInputs) -> int:
        """How often a step sends something; its tokens are those of the host."""
        before, arguments = device.fake.log.count("send"), (ones, ones, ones, ones, numbers, sampling)
        np.testing.assert_array_equal(executor.step(*arguments).following, still.step(*arguments).following)
        return device.fake.log.count("send") - before

    greedy = SamplingInputs.of(toy.BATCH, {})
    drawn = SamplingInputs.of(toy.BATCH, {1: SamplingParams(temperature=2.0)})
    zeros, numbers = np.zeros((toy.BATCH, 1), np.float32), np.full((toy.BATCH, 1), 0.25, np.float32)
    zeros.flags.writeable = False
    # Where the sequences are is sent each time.
    assert [sends(zeros, greedy) for _ in range(4)] == [2, 1, 1, 1]
    assert [sends(zeros, drawn) for _ in range(3)] == [2, 1, 1]
    for number in (0.25, 0.5, 0.75, 0.9):
        numbers[:] = number
        assert sends(numbers, drawn) == 2
    assert [sends(zeros, greedy) for _ in range(2)] == [2, 1]


def test_inputs_are_sent_again_where_columns_of_a_tensor_have_been(artifact: Artifact) -> None:
    device = FakeDevice()
    calls = Executor(artifact, device=device).calls
    places = {"length": np.ones(toy.BATCH, np.int32), "uniform": np.zeros((toy.BATCH, toy_heads.GAMMA), np.float32)}
    settings = SamplingInputs.of(toy.BATCH, {}).as_inputs()
    drafted = calls["draft"](anchor=np.array([4, 5, 6]), position=np.ones(toy.BATCH, np.int64), **places, **settings)
    decode, others = calls["decode"], ("positions", "sequence", "length", "count")
    numbers: dict[str, Any] = dict.fromkeys(others, 1) | {"sequence": np.arange(toy.BATCH)}
    numbers |= {"input_ids": np.full((toy.BATCH, 1), 9)}
    for value in (numbers["sequence"], numbers["input_ids"]):
        value.flags.writeable = False
    found = []
    for turn in range(6):
        columns = {"input_ids": Columns(drafted["input_ids"])} | {name: decode.inputs[name] for name in others}
        made = decode(**(columns if turn % 2 else numbers))
        found.append(device.fetch(made["logits"]).arrays()[0])
    for logits, first in zip(found[2:], found[:2] * 2, strict=True):
        np.testing.assert_array_equal(logits, first)
    assert (found[0] != found[1]).any()


def test_a_round_is_one_batch(artifact: Artifact) -> None:
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    sequence = SequenceState(0, [1], SamplingParams(40), room=40, eos_ids=frozenset(), tokenizer=None)
    found = []
    for _ in run(executor, Speculative(executor, CompiledDrafter(executor), executor.block_size), [sequence]):
        found.append(device.fake.log.count("batch"))
    assert set(np.diff(found)[3:-5]) == {1}, "but for the last ones"


def _captured(artifact: Artifact, params: SamplingParams) -> tuple[FakeDevice, Executor, list[list[int]]]:
    """A device and an executor whose calls have been captured, and the tokens they gave."""
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    return device, executor, tokens(executor, Autoregressive(executor), params)


def test_calls_are_captured_again_after_the_allocator_gave_memory_back(artifact: Artifact) -> None:
    params = SamplingParams(max_new_tokens=10)
    device, executor, first = _captured(artifact, params)
    captures = device.fake.log.count("capture")
    with device.counted():
        device.fake.free += 1 << 20
    assert tokens(executor, Autoregressive(executor), params) == first
    assert device.fake.log.count("capture") == 2 * captures
    assert tokens(executor, Autoregressive(executor), params) == first
    # A step of what the host knows became one launch the third time.
    assert device.fake.log.count("capture") == 2 * captures + 2


def test_calls_are_captured_again_when_constants_of_another_artifact_are_about_to_be_made(artifact: Artifact) -> None:
    params = SamplingParams(max_new_tokens=10)
    device, executor, first = _captured(artifact, params)
    captures = device.fake.log.count("capture")
    lanes.make_way(device.where)
    with pytest.raises(AssertionError, match="another use"):
        executor.calls["prefill_4"].again()
    assert tokens(executor, Autoregressive(executor), params) == first
    assert device.fake.log.count("capture") == 2 * captures


def test_a_device_has_one_stream_which_is_done_before_constants_are_made(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_LANES", {})
    device = FakeDevice()
    executor = Executor(artifact, device=device)
    one = np.ones(toy.BATCH, np.int64)
    executor.step(one, one, one, one, np.zeros((toy.BATCH, 1), np.float32), SamplingInputs.of(toy.BATCH, {}))
    assert device.fake.waiting
    lanes.make_way(device.where)
    assert not device.fake.waiting
    device.fake.stream = lambda: 8  # type: ignore[method-assign]
    assert GpuDevice(device.fake, device.where).stream == device.stream


def test_times_of_steps_are_measured_as_steps_are_used(artifact: Artifact) -> None:
    device = FakeDevice()
    times = measure(Executor(artifact, device=device))
    assert [step.tokens for step in times.verify] == [toy.VERIFY]
    assert min(times.decode_ms, times.draft_ms, times.verify[0].ms) > 0


def test_what_was_warmed_up_is_captured_before_it_is_wanted(artifact: Artifact) -> None:
    executor = Executor(artifact, device=FakeDevice())
    warm_up(executor, rounds=True)
    log = executor.device.fake.log  # type: ignore[attr-defined]
    log.clear()
    rounds = Speculative(executor, CompiledDrafter(executor), executor.block_size)
    for strategy in (rounds, Autoregressive(executor), rounds):
        assert tokens(executor, strategy, SamplingParams(max_new_tokens=25)) == expected()
    assert "launch" in log
    assert not {"run", "capture"} & set(log)


def test_an_artifact_without_weights_runs_with_others(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "hollow.dspark") as writer:
        whole = Artifact.open(toy.write(tmp_path / "whole.dspark"))
        for name in whole.manifest.files:
            if not name.startswith("params/"):
                writer.add_file(whole.path / name, name)
        writer.leave_out_params({n: TensorInfo(p.shape, p.dtype) for n, p in whole.manifest.params.items()})
        writer.finish(whole.manifest)
    hollow = Artifact.open(tmp_path / "hollow.dspark")
    with pytest.raises(ArtifactError, match="left-out"):
        Executor(hollow, device=FakeDevice())

    def fill(device: GpuDevice, tensors: Mapping[str, Any]) -> None:
        for name, array in zip(("table", "other"), toy.tables(), strict=True):
            to_array(tensors[name])[...] = array

    executor = Executor(hollow, device=FakeDevice(fill))
    np.testing.assert_array_equal(executor.prefill(0, [1, 2, 3], 0, 0), toy.Reference().logits([1, 2, 3]))


def test_a_call_can_be_run_again_with_what_it_was_given(artifact: Artifact) -> None:
    executor = Executor(artifact, device=FakeDevice())
    expected = executor.prefill(0, [1, 2, 3], 0, 0)
    call = executor.calls["prefill_4"]
    call.again()
    (found,) = executor.device.fetch(call._results["logits"]).arrays()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found.reshape(-1), expected)
    assert executor.device.fake.log.count("launch") == 1  # type: ignore[attr-defined]
