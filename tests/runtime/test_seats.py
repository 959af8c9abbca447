"""What stays the same as long as the same sequences go on, and what does not."""

import numpy as np

from dspark_compiler.runtime.sampling import SamplingParams
from dspark_compiler.runtime.seats import Seating
from dspark_compiler.runtime.sequence import SequenceState


def made(row: int, **params: object) -> SequenceState:
    settings = SamplingParams(**params)  # type: ignore[arg-type]
    sequence = SequenceState(row, [1, 2], settings, room=9, eos_ids=frozenset(), tokenizer=None)
    sequence.tokens.append(7 + row)
    return sequence


def test_numbers_are_those_of_each_sequence_in_its_order() -> None:
    drawn, alone = made(2, temperature=1.0, seed=3), made(0, temperature=1.0, seed=3)
    penalized = made(1, temperature=1.0, seed=3, repetition_penalty=1.1)
    seats = Seating(4, 2).of([drawn, penalized])
    for _ in range(3):
        drafting, judging, following = seats.numbers()
        right = alone.numbers(5)
        assert (drafting[2].tolist(), judging[2].tolist()) == (right[:2].tolist(), right[2:].tolist())
        assert following.tolist() == [[0], [0], [right[-1]], [0]]
        assert not drafting[[0, 1, 3]].any(), "nothing is drawn of one with a penalty by its number"
    assert penalized.numbers(1) == made(1, temperature=1.0, seed=3).numbers(1), "its stream was not touched"


def test_what_does_not_change_is_the_same_and_cannot_be_written() -> None:
    seating, sequences = Seating(3, 2), [made(0), made(2, repetition_penalty=1.5, temperature=1.0)]
    seats = seating.of(sequences)
    assert seating.of(list(sequences)) is seats
    assert all(one is other for one, other in zip(seats.numbers(), seats.numbers(), strict=True))
    fixed = [*seats.numbers(), seats.counts, *seats.sampling.as_inputs().values()]
    assert not any(array.flags.writeable for array in fixed)
    assert seats.counts.tolist() == [1, 0, 1]
    assert seats.sampling.temperature.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(seats.columns(), [[7, 0, 9], [0, 0, 0], [0, 0, 0]])
    other = seating.of(sequences[:1])
    assert other is not seats
    assert other.counts.tolist() == [1, 0, 0]
