"""When a round may open, how many devices it invites, which, and how long they get.

Decides, and does nothing: no store, no socket, no clock. The conductor asks, and tells it how
rounds went.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from coordinator.config import FederationConfig
from coordinator.leases import Lease, Leases
from coordinator.selection import is_eligible, select

# How long a round waits for connected devices that are about to speak.
PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to open a round now, and when to look again at the latest (None: when told to)."""

    open_now: bool
    again_at_s: float | None = None


class Planner:
    """Plans the rounds of one federation.

    Args:
        config: the federation's file.
        leases: which devices are there.
        taken_part: device -> how many of its updates were counted so far.
        seed: the federation's public seed.
        first_gathering: how many devices to hear before the first round, if they come in time.
        gathering_until_s: when that patience ends, unix seconds.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        leases: Leases,
        taken_part: Counter[str],
        seed: int,
        first_gathering: int,
        gathering_until_s: float,
    ) -> None:
        self._config = config
        self._leases = leases
        self._taken_part = taken_part
        self._seed = seed
        self._first_gathering = first_gathering
        self._gathering_until_s = gathering_until_s
        self._patient_until_s: float | None = None
        self._not_before_s = 0.0

    # -- what it is told ---------------------------------------------------------------------

    def round_opened(self, at_s: float) -> None:
        """A round opened, now or before a restart."""
        self._not_before_s = at_s + self._config.rounds.every_s

    def round_committed(self, devices: Iterable[str]) -> None:
        """Updates of these devices were counted."""
        self._taken_part.update(devices)

    def on_clock_step(self, by_s: float) -> None:
        """Somebody has set the clock: what was to happen in a while still does."""
        self._not_before_s += by_s
        self._gathering_until_s += by_s
        if self._patient_until_s is not None:
            self._patient_until_s += by_s

    def reconfigure(self, config: FederationConfig) -> None:
        """Another file is in force."""
        self._config = config

    # -- when --------------------------------------------------------------------------------

    def earliest_s(self, now_s: float) -> float:
        """When the next round may open: `every_s` after the last, also if a clock was set back."""
        self._not_before_s = min(self._not_before_s, now_s + self._config.rounds.every_s)
        return self._not_before_s

    def look(self, now_s: float) -> Verdict:
        """Whether enough eligible devices are there to be chosen from.

        Enough to invite opens at once. Fewer, if they can still make the quorum, open after a
        moment of patience for those who are connected and about to speak.
        """
        if now_s < self.earliest_s(now_s):
            return Verdict(open_now=False, again_at_s=self._not_before_s)
        if self._leases.heard < self._first_gathering and now_s < self._gathering_until_s:
            return Verdict(open_now=False, again_at_s=self._gathering_until_s)
        if self._patient_until_s is None:
            self._patient_until_s = now_s + PATIENCE_S
        patient = now_s < self._patient_until_s
        if not patient:
            self._leases.stop_expecting()
        eligible = len(self.eligible(now_s))
        if patient and (self._leases.expected or eligible < self.to_invite()):
            return Verdict(open_now=False, again_at_s=self._patient_until_s)
        self._patient_until_s = None
        # When they are too few only a check-in can change that, and it asks again.
        return Verdict(open_now=eligible >= self._config.rounds.needed)

    # -- whom, how many, how long ------------------------------------------------------------

    def eligible(self, now_s: float) -> list[Lease]:
        """Leases that run and meet the federation's conditions."""
        rules = self._config.selection
        return [lease for lease in self._leases.valid(now_s) if is_eligible(lease, rules)]

    def to_invite(self) -> int:
        """How many devices the next round invites."""
        return self._config.rounds.to_invite

    def deadline_s(self) -> float:
        """How long the next round's devices get, in seconds."""
        return self._config.rounds.deadline_s

    def choose(
        self, round_number: int, count: int, *, now_s: float, deadline_at_s: float
    ) -> list[Lease]:
        """At most `count` of the eligible devices, those first whom the policy prefers."""
        return select(
            self._leases.valid(now_s),
            self._config.selection,
            count=count,
            seed=self._seed,
            round_number=round_number,
            deadline_at_s=deadline_at_s,
            taken_part=self._taken_part,
        )
