"""How much of a piece of work the day's budgets still allow: five rungs, from all to nothing.

    full -> cheaper codec -> head only -> evaluate only -> skip

`allowed` looks at an invitation before anything is spent on it; `uplink` says how few bytes its
update may take, when it comes to that. Both are pure, and more room never leads to a lower rung or
to fewer bytes. The first two rungs differ in bytes alone. The head is for either: for bytes it is
trained like all else and sent alone; for time (`head_alone`) nothing else is trained.

A device knows what work takes from the last time that it did it; until then, nothing, and of the
head what the rest of the work suggests. What it underestimates, the gate still ends
(`edge_sdk.budget`).
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from edge_sdk.reasons import Reason
from edge_sdk.signals import NOTHING, Spent

# A round's own messages, signatures included: check-in, invitation, offer, receipt, settlement.
ROUND_BYTES: Final = 4_096
# What frames, topics and TLS add to a payload, in its chunks of 4 KB or more.
OVERHEAD: Final = 0.06
# No update is worth sending that has fewer bytes than this and the signs of its head.
_UPDATE_BYTES_MIN: Final = 128
_VALUES_A_BYTE: Final = 64


class Rung(IntEnum):
    """How much is done, the most first."""

    FULL = 0
    CHEAPER = 1
    HEAD = 2
    EVALUATE = 3
    SKIP = 4


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of the day's budgets; infinite where there is no bound."""

    traffic_bytes: float = math.inf
    joules: float = math.inf
    training_s: float = math.inf

    @classmethod
    def left(cls, budgets: Spent, spent: Spent) -> "Room":
        """What budgets leave, 0 of one being no bound."""
        return cls(
            _left(budgets.traffic_bytes, spent.traffic_bytes),
            _left(budgets.joules, spent.joules),
            _left(budgets.training_s, spent.training_s),
        )

    def seconds_of_work(self, watts: float) -> float:
        """How long work that takes so much can go on."""
        return min(self.training_s, self.joules / watts if watts else math.inf)

    @property
    def payload_bytes(self) -> float:
        """The largest update that fits, with all that goes with it."""
        return max((self.traffic_bytes - ROUND_BYTES) / (1.0 + OVERHEAD), 0.0)


def _left(budget: float, spent: float) -> float:
    return max(budget - spent, 0.0) if budget else math.inf


@dataclass(frozen=True, slots=True)
class Costs:
    """What a piece of work takes, as far as it is known.

    Attributes:
        training: joules and seconds of the last training, 0 before there was one.
        head_training: the same of the last training of the head alone.
        evaluation: the same of the last evaluation.
        fetch_bytes: what the base model takes on its way down, 0 if it is here.
        values: how many an update has that changes everything.
        head_values: how many its head has; `values` where no head is marked.
    """

    training: Spent = NOTHING
    head_training: Spent = NOTHING
    evaluation: Spent = NOTHING
    fetch_bytes: int = 0
    values: int = 0
    head_values: int = 0

    @property
    def least_training(self) -> Spent:
        """What training takes when it has to: that of the head alone, or of all without one.

        Before it was ever done, one pass forward over everything and two backward over the head.
        """
        if self.head_values == self.values or self.training == NOTHING:
            return self.training
        if self.head_training != NOTHING:
            return self.head_training
        share = (1.0 + 2.0 * self.head_values / max(self.values, 1)) / 3.0
        return Spent(0, self.training.joules * share, self.training.training_s * share)


def least_payload_bytes(values: int) -> int:
    """Fewer bytes than this say nothing of so many values."""
    return _UPDATE_BYTES_MIN + values // _VALUES_A_BYTE


def allowed(room: Room, costs: Costs) -> tuple[Rung, Reason | None]:
    """The highest rung that the room allows before anything is spent, and what is short.

    `HEAD` here stands for any update: how small it has to be, `uplink` says.
    """
    after_fetch = Room(room.traffic_bytes - costs.fetch_bytes, room.joules, room.training_s)
    able_to_evaluate = (
        after_fetch.traffic_bytes >= ROUND_BYTES
        and _fits(costs.evaluation, room)
        and room.joules > 0.0
        and room.training_s > 0.0
    )
    below = Rung.EVALUATE if able_to_evaluate else Rung.SKIP
    if after_fetch.payload_bytes < least_payload_bytes(costs.head_values):
        return below, Reason.BYTES_TOO_FEW
    least = costs.least_training
    if room.joules <= 0.0 or least.joules > room.joules:
        return below, Reason.ENERGY_TOO_LITTLE
    if room.training_s <= 0.0 or least.training_s > room.training_s:
        return below, Reason.TRAINING_TOO_SHORT
    if after_fetch.payload_bytes < least_payload_bytes(costs.values) or head_alone(room, costs):
        return Rung.HEAD, None
    return Rung.FULL, None


def head_alone(room: Room, costs: Costs) -> bool:
    """Whether training everything takes more than is left, so that at most the head is trained."""
    return not _fits(costs.training, room)


def _fits(cost: Spent, room: Room) -> bool:
    return cost.joules <= room.joules and cost.training_s <= room.training_s


def uplink(room: Room) -> int | None:
    """The most bytes that a payload may have, None for no bound of the device's own."""
    largest = room.payload_bytes
    return None if math.isinf(largest) else int(largest)


@dataclass(frozen=True, slots=True)
class Means:
    """What a device has to work with: what is left, and what its last work took."""

    room: Room = Room()
    training: Spent = NOTHING
    head_training: Spent = NOTHING
    evaluation: Spent = NOTHING
