"""The account of free slots: when something must be evicted, and how much is free afterwards."""

from hypothesis import given
from hypothesis import strategies as st

from dspark_compiler.artifact import PruningInfo
from dspark_compiler.runtime.slots import SlotAccount


def _account(horizon: int | None = None) -> SlotAccount:
    return SlotAccount(PruningInfo("window", room=20, block=6, horizon=horizon), batch=2)


def test_a_block_is_freed_when_nothing_is_free() -> None:
    account = _account()
    for _ in range(20):
        assert account.need(1, 1) is None
        account.confirmed(1, 1)
    assert (account.need(1, 1), account.free.tolist()) == (6, [20, 0])
    account.evicted(1, 6)
    assert (account.free[1], account.pending[1]) == (6, 0)


def test_a_chunk_gets_room_for_itself() -> None:
    account = _account()
    account.confirmed(0, 17)
    assert account.need(0, 3) is None
    assert account.need(0, 9) == 9


def test_queries_are_seen_before_their_ring_is_full() -> None:
    account = _account(horizon=8)
    account.confirmed(0, 8)
    assert account.need(0, 1) == 0
    account.evicted(0, 0)
    assert (account.free[0], account.pending[0]) == (12, 0)


def test_a_new_sequence_has_all_its_slots() -> None:
    account = _account()
    account.confirmed(0, 15)
    account.start(0)
    assert (account.free[0], account.pending[0]) == (20, 0)


@given(st.lists(st.integers(1, 12), max_size=60), st.sampled_from([None, 12, 16]))
def test_what_is_promised_is_free(counts: list[int], horizon: int | None) -> None:
    """Whatever is confirmed has its slots, and no query is lost that a policy wants to see."""
    account = _account(horizon)
    for count in counts:
        need = account.need(0, count)
        if need is not None:
            account.evicted(0, need)
        assert account.free[0] >= count
        account.confirmed(0, count)
        assert horizon is None or account.pending[0] <= horizon
        assert 0 <= account.free[0] <= 20
