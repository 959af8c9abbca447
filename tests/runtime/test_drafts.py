"""Prompt lookup against the plainest search."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dspark_compiler.runtime.drafts import GramIndex, PromptLookup
from dspark_compiler.runtime.rounds import Anchors
from dspark_compiler.runtime.sampling import SamplingInputs, SamplingParams
from dspark_compiler.runtime.sequence import SequenceState


def searched(tokens: list[int], count: int) -> list[int]:
    for n in range(min(4, len(tokens)), 0, -1):
        suffix = tokens[-n:]
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == suffix:
                text = list(tokens)
                for place in range(count):  # what it has found may overlap with what it adds
                    text.append(text[start + n + place])
                return text[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(1, 5), max_size=8), st.integers(1, 9))
def test_finds_what_followed_the_longest_suffix_last(tokens: list[int], pieces: list[int], count: int) -> None:
    index = GramIndex(tokens[:1])
    done = 1
    for size in [*pieces, len(tokens)]:
        index.extend(tokens[done : done + size])
        done = min(done + size, len(tokens))
        assert index.size == done
        assert index.continuation(count) == searched(tokens[:done], count)


def test_a_new_token_has_no_draft_and_what_repeats_is_taken_to_go_on() -> None:
    assert GramIndex([1, 2, 3]).continuation(4) == []
    assert GramIndex([7, 1, 2, 1, 2]).continuation(5) == [1, 2, 1, 2, 1]


def test_each_sequence_has_its_own_text() -> None:
    lookup = PromptLookup(3, 2)
    made = [
        SequenceState(row, prompt, SamplingParams(), room=50, eos_ids=frozenset(), tokenizer=None)
        for row, prompt in ((0, [1, 2, 1]), (2, [4, 5, 6]))
    ]
    unknown = Anchors(None, None, None)  # what is looked up is in the text
    nothing = unknown, np.zeros((3, 2), np.float32), SamplingInputs.of(3, {})
    for sequence in made:
        sequence.take(9)
    drafts = lookup.propose(made, *nothing)
    assert drafts.counts.tolist() == [0, 0, 0]
    assert (drafts.probs, drafts.confidence) == (None, None)
    for sequence, token in zip(made, (2, 4), strict=True):
        sequence.take(token)
    assert lookup.propose(made, *nothing).tokens.tolist() == [[1, 9], [0, 0], [5, 6]]
    assert lookup.propose(made[1:], *nothing).counts.tolist() == [0, 0, 2]
