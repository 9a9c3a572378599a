"""What the coordinator itself has seen of each device, and what may be expected of it from that.

A device's own word enters only as its utility, which is bounded here and clipped again where it is
used. Everything else is counted: invitations, what came of them, and how long that took. Devices
that were never invited take no memory; one that was takes some 200 bytes.

Estimates are smoothed twice: a device's by those of its class, a class's by those of all. What a
device did long ago weighs less, so that a bad week is forgotten.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

# How far the newest duration moves what is expected.
DURATION_GAIN: Final = 0.3
# What nobody has been tried for: Bonawitz et al., MLSys 2019, lose 6 to 10 % of devices in a round.
DELIVERY_FIRST: Final = 0.9
# In invitations: how much a class counts beside its device, and all devices beside a class.
CLASS_WEIGHT: Final = 4.0
ALL_WEIGHT: Final = 8.0
# After so many rounds what a device did counts half.
FORGET_ROUNDS: Final = 50
# Evidence for over-selection: a round counts this much of the one after it.
RECENT: Final = 0.9
LOSS_MAX: Final = 1_000.0
# Devices choose their class when they enrol; whatever comes after this many is one class.
CLASSES_MAX: Final = 64
# What a device says that could not be done in a round's time; it is taken to need this much more.
TOO_SLOW: Final = "deadline_passed"
SLOWER_BY: Final = 1.25
OTHER_CLASS: Final = "other"
# What an update is settled with that was whole and in time, or that others were quicker than.
_HONEST: Final = frozenset({"counted", "round_closed", "round_abandoned"})


class Past(msgspec.Struct, frozen=True, gc=False):
    """One device's history.

    `delivered` were receipted, `counted` became part of a model. `declined` invitations were turned
    down or given up, `vanished` ones never heard of again by the deadline; an invitee that a full
    cohort cut short is in none of them. `duration_s` is from invitation to receipt, averaged with
    more weight for the latest, 0 when there was none; `utility` that of the update of
    `utility_round`.
    """

    invited: int = 0
    delivered: int = 0
    counted: int = 0
    declined: int = 0
    vanished: int = 0
    duration_s: float = 0.0
    last_round: int = 0
    utility: float = 0.0
    utility_round: int = 0

    @property
    def lost(self) -> int:
        """Invitations that came to nothing."""
        return self.declined + self.vanished


NEVER: Final = Past()


@dataclass(frozen=True, slots=True)
class Heard:
    """An update of a round that is over: when it was whole, and how it was settled."""

    device: str
    after_s: float
    reason: str
    utility: float

    @property
    def honest(self) -> bool:
        """Whether nothing was wrong with it."""
        return self.reason in _HONEST


@dataclass(slots=True)
class _Sums:
    """Of a class, or of all: invitations that came to something and to nothing, and durations."""

    delivered: int = 0
    lost: int = 0
    duration_s: float = 0.0
    timed: int = 0

    def add(self, past: Past, sign: int) -> None:
        self.delivered += sign * past.delivered
        self.lost += sign * past.lost
        if past.duration_s > 0.0:
            self.duration_s += sign * past.duration_s
            self.timed += sign

    @property
    def mean_s(self) -> float | None:
        """The mean duration, in seconds."""
        return self.duration_s / self.timed if self.timed > 0 else None


@dataclass(slots=True)
class Recent:
    """How many of the latest invitations came to an update, with more weight for the newest."""

    delivered: float = 0.0
    lost: float = 0.0

    def note(self, delivered: int, lost: int) -> None:
        """A round is over."""
        self.delivered = RECENT * self.delivered + delivered
        self.lost = RECENT * self.lost + lost


def utility_of(metrics: Mapping[str, float], num_examples: int, examples_max: int) -> float:
    """Statistical utility of an update: examples times loss.

    Oort (Lai et al., OSDI 2021, eq. 1) has |B| * sqrt(mean of squared losses); devices send the
    mean loss alone, of training or of the base model on their hold-out, which is that for equal
    losses.
    What a device says is bounded: examples by the weight cap, the loss by `LOSS_MAX`.
    """
    loss = metrics.get("train_loss", metrics.get("base_loss", 0.0))
    if not math.isfinite(loss):
        return 0.0
    return min(max(num_examples, 0), examples_max) * min(max(loss, 0.0), LOSS_MAX)


class Classes:
    """Which class each device was enrolled as; never what it says when it checks in."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def enrol(self, device: str, device_class: str) -> None:
        """A device is enrolled."""
        known = self._names.get(device_class)
        if known is None:
            known = device_class if len(self._names) < CLASSES_MAX else OTHER_CLASS
            if len(self._names) < CLASSES_MAX:
                self._names[known] = known
        self._of.setdefault(device, known)

    def __call__(self, device: str) -> str:
        """The class of a device."""
        return self._of.get(device, OTHER_CLASS)


@dataclass
class Participation:
    """Histories of all devices that were ever invited.

    Args:
        class_of: the class that a device was enrolled as.
        pasts: what the store holds.
    """

    class_of: Callable[[str], str]
    pasts: dict[str, Past] = field(default_factory=dict)
    recent: Recent = field(default_factory=Recent)
    _classes: dict[str, _Sums] = field(default_factory=dict)
    _all: _Sums = field(default_factory=_Sums)

    def __post_init__(self) -> None:
        for device, past in self.pasts.items():
            self._sum(device, past, 1)
        # A restart knows sums alone: they count as much as ten rounds of any size would.
        whole = self._all.delivered + self._all.lost
        rounds = max((past.last_round for past in self.pasts.values()), default=0)
        share = min(1.0 / (1.0 - RECENT) / rounds, 1.0) if rounds else 0.0
        if whole:
            self.recent = Recent(self._all.delivered * share, self._all.lost * share)

    def of(self, device: str) -> Past:
        """A device's history."""
        return self.pasts.get(device, NEVER)

    def _sum(self, device: str, past: Past, sign: int) -> None:
        self._all.add(past, sign)
        self._classes.setdefault(self.class_of(device), _Sums()).add(past, sign)

    # -- what a round leaves ----------------------------------------------------------------------

    def after_round(
        self,
        round_number: int,
        invited: Iterable[str],
        heard: Collection[Heard],
        declined: Mapping[str, str],
        *,
        passed_s: float,
        deadline_passed: bool,
    ) -> dict[str, Past]:
        """The histories that a round changes; nothing is remembered before `adopt`.

        Args:
            round_number: its number.
            invited: devices.
            heard: the updates that were receipted.
            declined: devices that said that nothing will come, and why.
            passed_s: from its opening to its end, in seconds.
            deadline_passed: whether the others have had all the time that they were given.
        """
        by_device = {each.device: each for each in heard}
        changed = {}
        for device in invited:
            past, update = self.of(device), by_device.get(device)
            changes: dict[str, float] = {"invited": past.invited + 1, "last_round": round_number}
            if update is not None:
                changes["delivered"] = past.delivered + 1
                changes["counted"] = past.counted + (update.reason == "counted")
                changes["duration_s"] = _averaged(past.duration_s, update.after_s)
                if update.honest:
                    changes |= {"utility": update.utility, "utility_round": round_number}
            elif device in declined:
                changes["declined"] = past.declined + 1
                if declined[device] == TOO_SLOW:
                    changes["duration_s"] = max(past.duration_s, SLOWER_BY * passed_s)
            else:
                changes["vanished"] = past.vanished + deadline_passed
                # It takes longer than this, or it would have been heard.
                if past.duration_s or not deadline_passed:
                    changes["duration_s"] = max(past.duration_s, passed_s)
            changed[device] = msgspec.structs.replace(past, **changes)
        return changed

    def after_too_slow(self, device: str, whole_s: float) -> dict[str, Past]:
        """The history of a device that had a whole round's time, and needs longer."""
        past = self.of(device)
        duration_s = max(past.duration_s, SLOWER_BY * whole_s)
        return {device: msgspec.structs.replace(past, duration_s=duration_s)}

    def after_late(self, device: str, after_s: float) -> dict[str, Past]:
        """The history that an update changes which came when its round was over."""
        past = self.of(device)
        duration_s = _averaged(past.duration_s, after_s)
        return {device: msgspec.structs.replace(past, duration_s=duration_s)}

    def adopt(self, changed: Mapping[str, Past]) -> None:
        """Remember what is on disk now."""
        for device, past in changed.items():
            self._sum(device, self.of(device), -1)
            self.pasts[device] = past
            self._sum(device, past, 1)

    # -- what may be expected ---------------------------------------------------------------------

    def delivery_rate(self, device: str, round_number: int) -> float:
        """The probability that something comes of an invitation, whatever the time it takes."""
        everybody = self._all
        rate = _smoothed(everybody.delivered, everybody.lost, DELIVERY_FIRST, ALL_WEIGHT)
        of_class = self._classes.get(self.class_of(device))
        if of_class is not None:
            rate = _smoothed(of_class.delivered, of_class.lost, rate, ALL_WEIGHT)
        past = self.pasts.get(device)
        if past is None:
            return rate
        weight = _remembered(past, round_number)
        return _smoothed(past.delivered * weight, past.lost * weight, rate, CLASS_WEIGHT)

    def expected_s(self, device: str, round_number: int) -> float | None:
        """How long it takes from an invitation to its update: the device's, its class's, or all's.

        None when nothing has ever come.
        """
        of_class = self._classes.get(self.class_of(device))
        mean_s = None if of_class is None else of_class.mean_s
        usual_s = self._all.mean_s if mean_s is None else mean_s
        past = self.pasts.get(device)
        if past is None or not past.duration_s or usual_s is None:
            return usual_s
        weight = _remembered(past, round_number)
        return weight * past.duration_s + (1.0 - weight) * usual_s

    def durations_s(self) -> list[float]:
        """What is known of how long devices take, the shortest first."""
        return sorted(past.duration_s for past in self.pasts.values() if past.duration_s > 0.0)


def _remembered(past: Past, round_number: int) -> float:
    """What a history weighs, 1 when it is of now."""
    return FORGET_ROUNDS / (FORGET_ROUNDS + max(round_number - past.last_round, 0))


def _averaged(before_s: float, newest_s: float) -> float:
    newest_s = max(newest_s, 0.001)
    return newest_s if not before_s else before_s + DURATION_GAIN * (newest_s - before_s)


def _smoothed(good: float, bad: float, prior: float, weight: float) -> float:
    return (good + weight * prior) / (good + bad + weight)
