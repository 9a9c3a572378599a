"""The round that is open, or was last: its machine's state, and what its drivers remember beside.

The conductor, who opens rounds and who closes them share one `CurrentRound`. It answers what others
ask of the round, and decides nothing.
"""

from typing import Final

from coordinator import round as rounds
from coordinator.aggregation import RoundAggregation
from coordinator.models import Models
from coordinator.signals import RoundOpened, UpdateStored
from coordinator.store import Store
from wire import LocalProtocolError

# What an update is settled with that came when its round had all it needed, or too late for any.
ROUND_CLOSED: Final = "round_closed"
TOO_STALE: Final = "too_stale"

_OPEN_PHASES: Final = (rounds.Phase.INVITING, rounds.Phase.COLLECTING, rounds.Phase.CLOSING)


class CurrentRound:
    """One federation's open round.

    Args:
        store: where earlier rounds are, and payloads.
        models: the model that the round adds to.

    Attributes:
        state: the machine's; before the first round it is one that has not been opened.
        declines: why nothing comes from a device, by device.
        offences: why an update that is about to be settled was refused: its device's fault.
        kept: updates that were written ahead of being taken.
        payloads: of updates that are being taken; all others are on disk.
        invited_at: when each device was invited; an open buffer's alone.
        heard: whose update for this round is decided, or on disk.
    """

    def __init__(self, store: Store, models: Models) -> None:
        self._store = store
        self._models = models
        self._aggregation: RoundAggregation | None = None
        self.state = rounds.RoundState()
        self.declines: dict[str, str] = {}
        self.offences: dict[bytes, str] = {}
        self.kept: set[bytes] = set()
        self.payloads: dict[bytes, bytes] = {}
        self.invited_at: dict[str, float] = {}
        self.heard: set[str] = set()

    def begin(self, opened: RoundOpened) -> None:
        """Forget the last round: this one is about to be opened, or resumed."""
        self.state = rounds.RoundState()
        self.declines = {}
        self.offences = {}
        self.invited_at = {}
        self.heard = set()
        self._aggregation = RoundAggregation(self._models.schema, opened, self._models.memory)

    def recall(self, opened: RoundOpened) -> None:
        """Remember of a round that an earlier run opened what the store knows of it."""
        self.begin(opened)
        self.declines = self._store.declines(opened.round)
        self.invited_at = self._store.invited_at(opened.round)
        self.heard = self._store.devices_heard(opened.round)

    @property
    def opened(self) -> RoundOpened:
        """The round's record; an error before the first round."""
        return rounds.opened_of(self.state)

    @property
    def aggregation(self) -> RoundAggregation:
        """What the round's updates are added to; an error when there is nothing to add them to."""
        if self._aggregation is None:
            raise LocalProtocolError("no round is being summed")
        return self._aggregation

    def summed(self) -> None:
        """The sum has become a version."""
        self._aggregation = None

    @property
    def is_open(self) -> bool:
        """Whether a round is under way."""
        return self.state.phase in _OPEN_PHASES

    @property
    def fills_buffer(self) -> bool:
        """Whether the round that is open, or was last, is asynchronous."""
        return self.state.opened is not None and self.state.opened.mode == "async"

    def payload(self, update_id: bytes) -> bytes:
        """An update's bytes, wherever they are."""
        return self.payloads.get(update_id) or self._store.payload(update_id)

    # -- whom it waits for -------------------------------------------------------------------

    def waits_for(self, device: str, round_number: int = 0) -> bool:
        """Whether a device is invited and has not delivered; to a certain round, if not 0."""
        opened = self.state.opened
        if opened is None or not self.is_open:
            return False
        if self.fills_buffer:
            flight = self.state.flights.get(device)
            return flight is not None and round_number in (0, flight.round)
        return device in self.state.waiting_for and round_number in (0, opened.round)

    def may_still_train(self, device: str, now_s: float) -> bool:
        """Whether the open round waits for a device, and has time left for it to begin."""
        opened = self.state.opened
        if opened is None or not self.waits_for(device, opened.round):
            return False
        if self.fills_buffer:
            return now_s < self.state.flights[device].until_s
        return now_s < opened.deadline_at_s

    @property
    def waits_for_somebody_new(self) -> bool:
        """Whether nothing goes on before a device comes that can be invited."""
        return not self.is_open or (self.fills_buffer and not self.state.flights)

    # -- what it takes -----------------------------------------------------------------------

    @property
    def late_word(self) -> str:
        """What an update is settled with that cannot be taken any more."""
        return TOO_STALE if self.is_open and self.fills_buffer else ROUND_CLOSED

    def why_late(self, opened: RoundOpened) -> str | None:
        """Why an update for this round is not taken any more; None if it is."""
        current = self.state.opened
        if current is None or not self.is_open:
            return ROUND_CLOSED
        staleness = current.base_version - opened.base_version
        in_time = opened.round == current.round or (
            self.fills_buffer and 0 <= staleness <= current.staleness_max
        )
        return None if in_time else self.late_word

    def taken(self, round_number: int) -> RoundOpened | None:
        """The round of this number, if its updates are taken now."""
        current = self.state.opened
        if current is None or round_number == current.round:
            return current if self.is_open else None
        earlier = self._store.round_opened(round_number) if self.fills_buffer else None
        return None if earlier is None or self.why_late(earlier) else earlier

    def expects(self, update: UpdateStored) -> bool:
        """Whether the open round has a use for a whole update; else it is late, or here already."""
        return (
            self.is_open
            and self.taken(update.round) is not None
            and update.update_id not in self.state.updates
        )

    def note_heard(self, device: str, round_number: int) -> None:
        """A device's update for a round is on disk, or settled without being taken."""
        if self.state.opened is not None and round_number == self.state.opened.round:
            self.heard.add(device)

    def on_clock_step(self, by_s: float) -> None:
        """Somebody has set the clock; the machine hears of it by an event."""
        self.invited_at = {device: at_s + by_s for device, at_s in self.invited_at.items()}
