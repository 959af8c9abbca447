"""Drafting pays or is parked: simulated rounds with times by the table."""

from collections.abc import Callable

import numpy as np
import pytest

from dspark_compiler.artifact import StepTime, StepTimes
from dspark_compiler.runtime.costs import LiveCosts, RoundCosts
from dspark_compiler.runtime.pace import Acceptance, Pace
from dspark_compiler.runtime.rounds import RoundRecord
from dspark_compiler.runtime.scheduler import AsyncScheduler, admit

GAMMA = 7
COSTS = RoundCosts(StepTimes(10.0, 3.0, (StepTime(4, 13.0), StepTime(8, 19.0))))
LOOKUP = RoundCosts(StepTimes(10.0, 0.0, (StepTime(8, 19.0),)))

Accepted = Callable[[int, int], int]  # tokens so far, drafts looked at -> drafts that stay


class Simulation:
    """Rounds of one sequence: tokens made and milliseconds taken."""

    def __init__(self, costs: RoundCosts, confidence: Callable[[int], np.ndarray] | None = None) -> None:
        self.costs = costs
        self.pace = Pace(costs, GAMMA, (), admit)
        self.confidence = confidence
        self.tokens, self.ms = 0, 0.0
        self.drafts: list[int] = []

    def run(self, tokens: int, accepted: Accepted) -> "Simulation":
        end = self.tokens + tokens
        while self.tokens < end:
            if not self.pace.wants_drafts():
                self.pace.decoded()
                self.tokens, self.ms = self.tokens + 1, self.ms + self.costs.decode_ms
                continue
            logits = None if self.confidence is None else [self.confidence(self.tokens)]
            (count,) = self.pace.lengths([GAMMA], logits)
            stay = min(count, accepted(self.tokens, count))
            self.ms += self.costs.round_ms(self.costs.width(count))
            self.pace.drafted([RoundRecord(0, count, stay, None)])
            self.tokens += 1 + stay
            self.drafts.append(count)
        return self

    @property
    def speed(self) -> float:
        """Over plain decoding."""
        return self.tokens * self.costs.decode_ms / self.ms


def chance(rate: float, seed: int = 0) -> Accepted:
    rng = np.random.default_rng(seed)
    return lambda tokens, count: int(np.cumprod(rng.random(count) < rate).sum())


def spiteful(tokens: int, count: int) -> int:
    """Lets drafts stay just often enough to make it worth trying."""
    return count if (tokens // 40) % 3 == 0 else 0


@pytest.mark.parametrize("costs", [COSTS, LOOKUP], ids=["drafter", "lookup"])
@pytest.mark.parametrize("tokens", [400, 4000])
@pytest.mark.parametrize(
    "accepted", [*(chance(rate) for rate in (0, 0.2, 0.4, 0.5, 0.6)), spiteful], ids=[0, 2, 4, 5, 6, "spite"]
)
def test_never_slower_than_plain_decoding(costs: RoundCosts, tokens: int, accepted: Accepted) -> None:
    assert Simulation(costs).run(tokens, accepted).speed >= 0.98


@pytest.mark.parametrize("sure", [-3.0, 0.0, 3.0])
def test_confidences_that_lie_cost_little(sure: float) -> None:
    made = Simulation(COSTS, lambda tokens: np.full(GAMMA, sure)).run(4000, chance(0.0))
    assert made.speed >= 0.98
    assert set(made.drafts) <= {0, 3, 7}


def test_steps_are_made_ahead_where_no_more_may_be_lost() -> None:
    dear = RoundCosts(StepTimes(1.0, 1.0, (StepTime(8, 2.5),)))  # a round of 3.5 plain steps that brings two tokens
    simulation = Simulation(dear).run(40, lambda _tokens, _drafted: 1)
    waits = 0
    for _ in range(100):
        assert simulation.pace.wants_drafts() or simulation.pace.rests or waits == 0
        waits = 0 if simulation.pace.rests else waits + 1
        simulation.run(1, lambda _tokens, _drafted: 1)
    assert simulation.speed > 0.9


def test_what_pays_is_used_fully() -> None:
    made = Simulation(COSTS).run(4000, chance(0.9))
    assert made.speed > 0.95 * (sum(0.9**j for j in range(GAMMA + 1)) * 10 / 22)
    assert np.mean(np.array(made.drafts) == GAMMA) > 0.95


def test_what_pays_on_the_whole_is_kept_through_rounds_that_do_not() -> None:
    """A round takes 2.2 plain steps and brings 3.1 tokens, but only one as often as not brings more than two."""
    costs = RoundCosts(StepTimes(0.86, 0.77, (StepTime(4, 0.99), StepTime(8, 1.13))))
    made = [Simulation(costs).run(4000, chance(0.7, seed)).speed for seed in range(6)]
    assert np.mean(made) > 0.9 * (sum(0.7**j for j in range(GAMMA + 1)) * 0.86 / 1.9)


def test_the_block_is_as_long_as_pays() -> None:
    """The first three drafts stay, and no others."""
    made = Simulation(COSTS).run(4000, lambda tokens, count: min(count, 3))
    assert made.speed > 0.97 * (4 * 10 / 16)
    assert made.drafts[-1] == 3


def test_a_group_is_parked_longer_and_longer_and_comes_back_when_drafting_pays_again() -> None:
    made = Simulation(COSTS).run(2000, chance(0.0))
    tried = len(made.drafts)
    assert tried < 20
    before, ms = made.tokens, made.ms
    made.run(3000, chance(0.9, 1))
    assert (made.tokens - before) * 10 / (made.ms - ms) > 1.6


def test_another_answer_begins_unparked_however_the_last_one_went() -> None:
    simulation = Simulation(COSTS).run(300, chance(0.0))
    assert not simulation.pace.wants_drafts()
    simulation.pace.began()
    assert simulation.pace.wants_drafts()
    before, ms = simulation.tokens, simulation.ms
    simulation.run(300, chance(0.9, 1))
    assert (simulation.tokens - before) * 10 / (simulation.ms - ms) > 2, "hardly worse than from the beginning"


def test_answers_that_begin_forget_nothing_of_what_pays() -> None:
    made = [Simulation(COSTS).run(1000, chance(0.9)) for _ in range(2)]
    for simulation, begins in zip(made, (False, True), strict=True):
        rolled = chance(0.9, 1)
        for _ in range(10):
            if begins:
                simulation.pace.began()
            simulation.run(40, rolled)
    assert made[0].drafts == made[1].drafts


def test_many_answers_that_never_pay_cost_little() -> None:
    simulation = Simulation(COSTS)
    for _ in range(40):
        simulation.pace.began()
        simulation.run(100, chance(0.0))
    assert simulation.speed >= 0.98


def test_low_confidence_makes_a_plain_step_and_many_of_them_park() -> None:
    made = Simulation(COSTS, lambda tokens: np.full(GAMMA, -4.0)).run(300, chance(0.0))
    assert set(made.drafts) == {0}
    assert len(made.drafts) < 20
    # One block that is not worth it, among others that are, parks nothing.
    sometimes = Simulation(COSTS, lambda tokens: np.full(GAMMA, -4.0 if tokens % 5 == 0 else 4.0))
    made = sometimes.run(3000, chance(0.95))
    assert set(made.drafts) == {0, GAMMA}
    assert sum(made.drafts) > 2000
    assert made.speed > 1.8


def test_estimates_follow_what_is_seen_and_stay_hopeful_about_the_rest() -> None:
    acceptance = Acceptance(3)
    np.testing.assert_allclose(acceptance.survival(), 0.7 ** np.arange(1, 4))
    for _ in range(200):
        acceptance.observe(3, 1)
    first, second, third = acceptance.survival()
    assert first > 0.95
    assert second < 0.1 * first
    assert third == pytest.approx(second * second / first)  # never seen: as good as the one before
    acceptance.observe(0, 0)  # tells nothing
    assert acceptance.survival()[0] == first
    for _ in range(300):
        acceptance.observe(1, 1)
    assert acceptance.survival()[1] > 0.5  # not seen for long


def test_longer_blocks_are_tried_again() -> None:
    made = Simulation(COSTS).run(1000, lambda tokens, count: min(count, 3))
    made.run(600, chance(0.97))
    assert made.drafts[-1] == GAMMA


def test_costs_of_rounds() -> None:
    assert [COSTS.width(drafts) for drafts in (0, 1, 3, 4, 7)] == [1, 4, 4, 8, 8]
    assert (COSTS.round_ms(1), COSTS.round_ms(8), COSTS.widest_ms) == (13, 22, 22)
    assert COSTS.rate(2, 2) == 1 / 13
    assert COSTS.rate(8, 2) == 1 / 16
    assert COSTS.rate(12, 2) == pytest.approx(1 / 19)
    assert COSTS.best_width([np.zeros(7)]) == 1
    assert COSTS.best_width([np.ones(3)]) == 4
    assert COSTS.best_width([np.ones(7), np.ones(7)]) == 8


def test_live_costs_follow_what_is_measured_but_no_outlier() -> None:
    live = LiveCosts(COSTS.times)
    for _ in range(100):
        live.stepped(1, 6.0)
        live.stepped(8, 12.0)
        live.drafted(2.0)
    assert live.decode_ms == pytest.approx(6.0, rel=0.01)
    assert live.round_ms(8) == pytest.approx(14.0, rel=0.01)
    assert live.round_ms(4) == pytest.approx(15.0, rel=0.01), "a width nobody took keeps its time"
    live.stepped(1, 6000.0)
    assert live.decode_ms < 7.0, "the processor was somebody else's for a moment"


def test_with_live_costs_a_plain_step_is_taken_now_and_then() -> None:
    simulation = Simulation(LiveCosts(COSTS.times)).run(5000, lambda tokens, count: count)
    plain = simulation.tokens - sum(count + 1 for count in simulation.drafts)
    assert plain == len(simulation.drafts) // 256 > 0


def test_what_paid_by_the_table_is_parked_where_it_does_not_here() -> None:
    """By the table a round is cheap; on this machine it takes three plain steps, and two tokens come of it."""
    live = LiveCosts(StepTimes(10.0, 1.0, (StepTime(8, 11.0),)))
    simulation = Simulation(live)
    for _ in range(40):
        simulation.run(8, lambda tokens, count: 1)
        live.stepped(8, 29.0)
        live.drafted(1.0)
    before = len(simulation.drafts)
    simulation.run(400, lambda tokens, count: 1)
    assert len(simulation.drafts) - before < 10


def test_one_sequence_after_two_verifies_no_more_than_it_has() -> None:
    """What two rounds before, of two sequences, made worth while is more than one sequence can draft."""
    pace = Pace(RoundCosts(StepTimes(1.0, 0.0, (StepTime(4, 1.01), StepTime(8, 1.02)))), GAMMA, (), AsyncScheduler())
    sure = np.full(GAMMA, 9.0, np.float32)
    for _ in range(2):
        assert pace.lengths([GAMMA, GAMMA], [sure, sure]) == [GAMMA, GAMMA]
    assert pace.lengths([GAMMA], [sure]) == [GAMMA]
