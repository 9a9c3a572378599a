"""When a round may open, how many devices it invites, which, and how long they get.

Decides, and does nothing: no store, no socket, no clock. The conductor asks, and tells it how
rounds went.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator import selection, sizing
from coordinator.config import FederationConfig
from coordinator.leases import Lease, Leases
from coordinator.participation import Participation, Past
from coordinator.selection import FloorWindow, Question, Shares

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
        participation: what was seen of each device so far.
        window: the latest rounds by class.
        seed: the federation's public seed.
        first_gathering: how many devices to hear before the first round, if they come in time.
        gathering_until_s: when that patience ends, unix seconds.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        leases: Leases,
        participation: Participation,
        window: FloorWindow,
        seed: int,
        first_gathering: int,
        gathering_until_s: float,
    ) -> None:
        self.participation = participation
        self._config = config
        self._leases = leases
        self._window = window
        self._seed = seed
        self._first_gathering = first_gathering
        self._gathering_until_s = gathering_until_s
        self._patient_until_s: float | None = None
        self._not_before_s = 0.0

    # -- what it is told ---------------------------------------------------------------------

    def round_opened(self, at_s: float) -> None:
        """A round opened, now or before a restart."""
        self._not_before_s = at_s + self._config.rounds.every_s

    def round_closed(
        self,
        changed: Mapping[str, Past],
        there: Mapping[str, int],
        counted: Iterable[str],
        rejected: int,
    ) -> None:
        """A round is over, and that is on disk.

        Args:
            changed: the histories of those who were invited.
            there: eligible devices by class when it opened.
            counted: devices whose updates were counted.
            rejected: how many updates came and were refused: a cohort is not filled by them.
        """
        before = {device: self.participation.of(device) for device in changed}
        delivered = sum(
            past.delivered - before[device].delivered for device, past in changed.items()
        )
        lost = sum(past.lost - before[device].lost for device, past in changed.items())
        self.participation.adopt(changed)
        self.participation.recent.note(delivered - rejected, lost + rejected)
        by_class = Counter(self.participation.class_of(device) for device in counted)
        self._window.rounds.append(Shares(there, by_class))

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
        return selection.candidates(self._leases.valid(now_s), rules)

    def there(self, now_s: float) -> dict[str, int]:
        """How many of them there are of each class."""
        return selection.by_class(self.eligible(now_s), self.participation)

    def to_invite(self) -> int:
        """How many devices the next round invites."""
        adapt = self._config.selection.adapt_over_select
        return sizing.to_invite(self._config.rounds, self.participation.recent, adapt=adapt)

    def deadline_s(self, bytes_both_ways: int) -> float:
        """How long the next round's devices get, in seconds.

        Args:
            bytes_both_ways: what a device receives and sends in a round.
        """
        durations_s = (
            self.participation.durations_s() if self._config.rounds.deadline == "auto" else []
        )
        return sizing.deadline_s(self._config.rounds, durations_s, bytes_both_ways=bytes_both_ways)

    def choose(
        self, round_number: int, count: int, *, now_s: float, deadline_at_s: float
    ) -> list[Lease]:
        """At most `count` of the eligible devices, those first whom the policy prefers."""
        question = Question(
            rules=self._config.selection,
            count=count,
            needed=self._config.rounds.needed,
            cohort=self._config.rounds.cohort,
            seed=self._seed,
            round_number=round_number,
            now_s=now_s,
            deadline_at_s=deadline_at_s,
        )
        return selection.select(
            self._leases.valid(now_s), question, self.participation, self._window
        )
