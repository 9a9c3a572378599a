"""Whom to invite: pure functions of leases, histories, a public seed and a round's number.

`random` draws lots among the eligible (the baseline of McMahan et al. 2017, algorithm 1, line 4).

`availability` prefers devices that are likely to finish by the deadline: they deliver when asked,
take no longer than the round does, and expect to be there that long. Likelihoods are compared in
coarse bands. Within a band the slow and the fast take turns, in proportion to how many there are
(tiers, after TiFL, Chai et al., HPDC 2020): whoever is the slowest of a round is the one that a
full cohort cuts short, and mixed with fast devices that is always the same, after the longest work.
Then those come first that took part least, so that ever-present devices do not own the model;
chance breaks ties.

`prioritised` is Oort (Lai et al., OSDI 2021, algorithm 1): statistical utility with a bonus for
what is stale, a penalty for being slow, and a share for devices that were never tried. Differences
from the paper: utility is also multiplied by the likelihood of finishing, and the quantile at which
utilities are clipped is that of the devices that are there, so that a liar gains no more than the
best of them.

Over whatever a policy prefers lie two rules. A device that was invited sits out `min_separation`
rounds, unless a quorum cannot be had without it. A class of devices gets at least
`participation_floor` of its share of those that are there: seats are reserved for one that is
behind.
"""

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.config import Selection
from coordinator.leases import Lease
from coordinator.participation import Participation, Past

# Likelihoods of finishing that differ by less are the same: fairness decides.
BANDS: Final = 5
# With this much more time than it takes on average a device is sure to finish; with this much less
# it is sure not to.
_AMPLE: Final = 1.25
_HOPELESS: Final = 0.75
# A device that needs more than this share of a round's time is slow.
SLOW_SHARE: Final = 1.0 / 3.0
# Over how many rounds a class gets its share.
FLOOR_ROUNDS: Final = 20
# However rarely a class delivers, no more than this many seats are reserved for one counted update.
_SEATS_PER_UPDATE_MAX: Final = 2.0
_ROUNDS_UP: Final = 0.5
# Oort, section 7.1 and algorithm 1: exploration falls from 0.9 by 0.98 a round to 0.2; utilities
# are clipped at their 95 % quantile; alpha is 2; the preferred duration is a pacer's, here the
# duration that four fifths of the candidates keep to.
EXPLORE_FIRST: Final = 0.9
EXPLORE_DECAY: Final = 0.98
EXPLORE_LAST: Final = 0.2
CLIP_QUANTILE: Final = 0.95
PREFERRED_QUANTILE: Final = 0.8
STALENESS_WEIGHT: Final = 0.1


def is_eligible(lease: Lease, rules: Selection) -> bool:
    """Whether a device's own report meets the federation's conditions."""
    return (
        (lease.charging or lease.battery_fraction >= rules.min_battery)
        and (lease.charging or not rules.require_charging)
        and (rules.allow_metered or not lease.metered)
    )


def has_rested(past: Past, round_number: int, min_separation: int) -> bool:
    """Whether a device has sat out as many rounds as it should since it was last invited."""
    if not min_separation or not past.last_round:
        return True
    return round_number - past.last_round > min_separation


def lot(seed: int, round_number: int, device: str) -> bytes:
    """A device's place in the draw: the same on any machine, whatever order leases came in."""
    return hashlib.sha256(f"{seed}/{round_number}/{device}".encode()).digest()


# -- the floor -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shares:
    """One round by class: how many eligible devices were there, and whose updates were counted."""

    there: Mapping[str, int]
    counted: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class FloorWindow:
    """The latest rounds by class."""

    rounds: deque[Shares] = field(default_factory=lambda: deque(maxlen=FLOOR_ROUNDS))

    def owed(self, there: Mapping[str, int], floor: float, cohort: int) -> dict[str, float]:
        """Counted updates that each class lacks for its floor, were the next round to count too.

        floor * (sum over rounds of the class's share of those there * the round's counted updates)
        - the class's counted updates; classes that lack nothing are left out.
        """
        owed: Counter[str] = Counter()
        upcoming = Shares(there, {"": cohort})
        for each in (*self.rounds, upcoming):
            present, counted = sum(each.there.values()), sum(each.counted.values())
            for name, number in each.there.items():
                owed[name] += floor * counted * number / present  # type: ignore[assignment] # a sum of floats
            for name, number in each.counted.items():
                owed[name] -= number
        return {name: owed[name] for name in there if owed[name] > 0.0}


# -- the policies ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """Who shall be invited.

    Args:
        rules: the file's `[selection]`.
        count: how many at most.
        needed: the quorum: rest is cut short for as many, and for no more.
        cohort: how many updates will count.
        seed: the federation's public seed.
        round_number: enters the draw, so that every round draws anew.
        now_s: unix seconds.
        deadline_at_s: when the round ends, unix seconds.
    """

    rules: Selection
    count: int
    needed: int
    cohort: int
    seed: int
    round_number: int
    now_s: float
    deadline_at_s: float


def select(
    leases: Collection[Lease],
    question: Question,
    participation: Participation,
    window: FloorWindow,
) -> list[Lease]:
    """Choose at most `count` of the eligible leases, those first whom the policy prefers."""
    eligible = candidates(leases, question.rules)
    rested: list[Lease] = []
    others: list[Lease] = []
    for lease in sorted(eligible, key=lambda each: each.device):
        past = participation.of(lease.device)
        fit = has_rested(past, question.round_number, question.rules.min_separation)
        (rested if fit else others).append(lease)
    if len(rested) < question.needed:
        # A quorum is worth more than rest: those come that have rested longest.
        others.sort(
            key=lambda each: (
                participation.of(each.device).last_round,
                lot(question.seed, question.round_number, each.device),
            )
        )
        rested += others[: question.needed - len(rested)]
    ranked = _POLICIES[question.rules.policy](rested, question, participation)
    if question.rules.policy == "random" or not question.rules.participation_floor:
        return ranked[: question.count]
    return _seated(ranked, question, participation, window, by_class(eligible, participation))


def candidates(leases: Iterable[Lease], rules: Selection) -> list[Lease]:
    """Those who may be asked at all."""
    return [each for each in leases if is_eligible(each, rules)]


def by_class(leases: Iterable[Lease], participation: Participation) -> dict[str, int]:
    """How many there are of each class, as they were enrolled."""
    return dict(sorted(Counter(participation.class_of(each.device) for each in leases).items()))


def chance_to_finish(lease: Lease, question: Question, participation: Participation) -> float:
    """The estimated probability that a device's update is here by the deadline.

    How often something came of its invitations, times how well its usual time fits into the round,
    times how well it fits into the time that the device expects to be there. A device of which
    nothing is known is taken to need the whole round.
    """
    allowed_s = max(question.deadline_at_s - question.now_s, 0.001)
    stays_s = max(lease.stays_until_s - question.now_s, 0.0)
    rate = participation.delivery_rate(lease.device, question.round_number)
    expected_s = participation.expected_s(lease.device, question.round_number)
    if expected_s is None:
        return rate * min(stays_s / allowed_s, 1.0)
    return rate * _fits(expected_s, allowed_s) * _fits(expected_s, stays_s)


def _is_slow(lease: Lease, question: Question, participation: Participation) -> bool:
    """Whether a device takes a good part of the round; of one that is not known nobody can say."""
    expected_s = participation.expected_s(lease.device, question.round_number)
    allowed_s = question.deadline_at_s - question.now_s
    return expected_s is not None and expected_s > SLOW_SHARE * allowed_s


def _fits(needs_s: float, has_s: float) -> float:
    """0 when there is far too little time, 1 when there is ample, a straight line between."""
    return min(max((has_s / needs_s - _HOPELESS) / (_AMPLE - _HOPELESS), 0.0), 1.0)


def _by_lot(
    leases: Sequence[Lease], question: Question, _participation: Participation
) -> list[Lease]:
    return sorted(leases, key=lambda each: lot(question.seed, question.round_number, each.device))


def _by_availability(
    leases: Sequence[Lease], question: Question, participation: Participation
) -> list[Lease]:
    slow = {each.device: _is_slow(each, question, participation) for each in leases}
    share = sum(slow.values()) / max(len(slow), 1)
    turn_of_slow = int(question.round_number * share) > int((question.round_number - 1) * share)
    return sorted(
        leases,
        key=lambda each: (
            -int(chance_to_finish(each, question, participation) * BANDS),
            slow[each.device] != turn_of_slow,
            participation.of(each.device).counted,
            lot(question.seed, question.round_number, each.device),
        ),
    )


def _by_priority(
    leases: Sequence[Lease], question: Question, participation: Participation
) -> list[Lease]:
    """Oort, algorithm 1: the exploited first, then the explored, then the rest."""
    number = question.round_number
    tried = [each for each in leases if participation.of(each.device).utility_round]
    fresh = [each for each in leases if not participation.of(each.device).utility_round]
    share = max(EXPLORE_FIRST * EXPLORE_DECAY ** (number - 1), EXPLORE_LAST)
    explored = min(round(share * question.count), len(fresh))
    values = utilities(tried, question, participation)
    tried.sort(key=lambda each: (-values[each.device], lot(question.seed, number, each.device)))
    # Who was never tried has no utility: the likely to finish first, as Oort's are by speed.
    fresh = _by_availability(fresh, question, participation)
    exploited = question.count - explored
    return [*tried[:exploited], *fresh[:explored], *tried[exploited:], *fresh[explored:]]


def utilities(
    leases: Sequence[Lease], question: Question, participation: Participation
) -> dict[str, float]:
    """Oort's utility of devices that have been tried, by device.

    Util = (U / U_max + sqrt(0.1 * log R / L)) * (T / t)^2 if t > T (eq. 2 and algorithm 1, line 10)
    times the likelihood of finishing; U is clipped at its 95 % quantile, L is the device's last
    round, R this one, t its usual time, T what four fifths of the candidates keep to.
    """
    pasts = {each.device: participation.of(each.device) for each in leases}
    if not pasts:
        return {}
    largest = _quantile([past.utility for past in pasts.values()], CLIP_QUANTILE)
    times = [past.duration_s for past in pasts.values() if past.duration_s > 0.0]
    preferred_s = _quantile(times, PREFERRED_QUANTILE) if times else math.inf
    found = {}
    for each in leases:
        past = pasts[each.device]
        gain = min(past.utility, largest) / largest if largest > 0.0 else 0.0
        ages = math.log(question.round_number + 1) / past.utility_round
        gain += math.sqrt(STALENESS_WEIGHT * ages)
        if past.duration_s > preferred_s:
            gain *= (preferred_s / past.duration_s) ** 2
        # Rounded: libraries differ in a logarithm's last bit, and a draw must not.
        found[each.device] = round(gain * chance_to_finish(each, question, participation), 9)
    return found


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


_POLICIES: Final[
    Mapping[str, Callable[[Sequence[Lease], Question, Participation], list[Lease]]]
] = {"random": _by_lot, "availability": _by_availability, "prioritised": _by_priority}


def _seated(
    ranked: list[Lease],
    question: Question,
    participation: Participation,
    window: FloorWindow,
    there: Mapping[str, int],
) -> list[Lease]:
    """The first `count`, but with seats reserved for classes that are behind."""
    owed = window.owed(there, question.rules.participation_floor, question.cohort)
    present = sum(there.values())
    # Never more than its share: what a class has missed comes back over several rounds.
    most = {name: math.ceil(question.count * there[name] / present) for name in owed}
    reserved: list[Lease] = []
    others: list[Lease] = []
    for lease in ranked:
        name = participation.class_of(lease.device)
        # Half an update is rounded to one, and down to none.
        if owed.get(name, 0.0) >= _ROUNDS_UP and most[name] and len(reserved) < question.count:
            chance = chance_to_finish(lease, question, participation)
            owed[name] -= max(chance, 1.0 / _SEATS_PER_UPDATE_MAX)
            most[name] -= 1
            reserved.append(lease)
        else:
            others.append(lease)
    chosen = {each.device for each in (*reserved, *others)[: question.count]}
    return [each for each in ranked if each.device in chosen]
