"""How many devices a round invites, how long they get, and whether its bytes are left.

Pure functions of the file and of what was measured.
"""

import math
from collections.abc import Collection, Sequence
from typing import Final

from coordinator.config import Rounds
from coordinator.participation import Recent

# However many drop out, no round invites more than this many times its cohort, unless the file says
# so itself: a federation that loses two of three has another problem.
OVER_SELECT_MAX: Final = 3.0
# In cohorts: how much evidence weighs as much as the file's own number.
OVER_SELECT_WEIGHT: Final = 1.0
# One-sided 80 % of a normal distribution: in four rounds of five the cohort is full.
MARGIN_Z: Final = 0.84
# What a cellular link at the edge of its cell gives, both ways.
SLOW_LINK_BYTES_PER_S: Final = 20_000.0
# Nine of ten devices, and half as much again.
DEADLINE_QUANTILE: Final = 0.9
DEADLINE_MARGIN: Final = 1.5
DEADLINE_S_MIN: Final = 5.0
# A quantile of fewer says nothing.
DURATIONS_MIN: Final = 5
# The next round is taken to cost as much as the most expensive of so many before it.
BUDGET_ROUNDS: Final = 5


def to_invite(rounds: Rounds, recent: Recent, *, adapt: bool) -> int:
    """How many devices to invite so that `cohort` updates are likely.

    Without evidence it is ceil(over_select * cohort). With it, the smallest m for which
    m * p - z * sqrt(m * p * (1 - p)) >= cohort, where p is the measured share of invitations that
    came to an update, smoothed with 1 / over_select (a binomial's mean less a margin, by its normal
    approximation; z grows with the evidence, so that the number moves and does not jump). At
    quorum 1 it is the cohort (docs/adr/0004).

    Args:
        rounds: the file's `[rounds]`.
        recent: what came of the latest invitations.
        adapt: whether evidence counts at all.
    """
    first = rounds.to_invite
    evidence = recent.delivered + recent.lost
    if not adapt or first == rounds.cohort or evidence < 1.0:
        return first
    weight = OVER_SELECT_WEIGHT * rounds.cohort
    rate = (recent.delivered + weight / rounds.over_select) / (evidence + weight)
    most = math.ceil(max(OVER_SELECT_MAX, rounds.over_select) * rounds.cohort)
    # m * p - z * sqrt(p * (1 - p)) * sqrt(m) = cohort is a quadratic in sqrt(m).
    margin = MARGIN_Z * evidence / (evidence + weight)
    spread = margin * math.sqrt(rate * (1.0 - rate))
    root = (spread + math.sqrt(spread * spread + 4.0 * rate * rounds.cohort)) / (2.0 * rate)
    return min(max(math.ceil(round(root * root, 6)), rounds.cohort), most)


def deadline_s(rounds: Rounds, durations_s: Sequence[float], *, bytes_both_ways: int) -> float:
    """How long a round may last, in seconds; never more than the file's `deadline_s`.

    With `deadline = "auto"`: the bytes of model and update at the rate of a slow link, plus the
    time that nine of ten devices keep to and half of it again. Until enough devices were timed it
    is the file's.

    Args:
        rounds: the file's `[rounds]`.
        durations_s: from invitation to receipt, of each device that was ever timed, in order.
        bytes_both_ways: of the base model and of an update.
    """
    if rounds.deadline == "fixed" or len(durations_s) < DURATIONS_MIN:
        return rounds.deadline_s
    usual_s = durations_s[int(DEADLINE_QUANTILE * (len(durations_s) - 1))]
    enough_s = bytes_both_ways / SLOW_LINK_BYTES_PER_S + DEADLINE_MARGIN * usual_s
    return min(max(enough_s, DEADLINE_S_MIN), rounds.deadline_s)


def budget_allows(bytes_max: int, spent_bytes: int, last_bytes: Collection[int]) -> bool:
    """Whether another round fits into the federation's byte budget; 0 is no budget.

    It is taken to cost as much as the most expensive of the last few.

    Args:
        bytes_max: the file's, both ways.
        spent_bytes: so far.
        last_bytes: of each of the last `BUDGET_ROUNDS` rounds.
    """
    if not bytes_max:
        return True
    estimate = max(last_bytes, default=0)
    return spent_bytes < bytes_max and spent_bytes + estimate <= bytes_max
