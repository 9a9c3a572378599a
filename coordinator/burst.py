"""Updates that came together go to disk together.

A transaction costs a disk the same for one update as for twenty, and a cohort that was invited
together answers together. So whole updates, and refusals of late ones, wait until the frames that
are there have been looked at; then one transaction has them, and only then is anything done with
them or said of them. Without a burst each goes its way at once.
"""

from collections.abc import Callable
from typing import Final

from coordinator.conductor import Conductor
from coordinator.signals import UpdateStored
from coordinator.store import DiskFullError, Store

# What may wait in memory before it is written, however many frames follow.
BURST_BYTES_MAX: Final = 4_194_304


class Burst:
    """Whole updates between the inbox and the round.

    Args:
        store: where they go.
        rounds: who takes them then.
        tell: says what the ledger says of an update: (device, update id).
        say_refused: says that an update is not taken, and why.
        no_room: says to a device that there is no room on the disk now.

    Attributes:
        running: whether more frames are there to be looked at.
    """

    def __init__(
        self,
        *,
        store: Store,
        rounds: Conductor,
        tell: Callable[[str, bytes], None],
        say_refused: Callable[[UpdateStored, str], None],
        no_room: Callable[[str], None],
    ) -> None:
        self.running = False
        self._store = store
        self._rounds = rounds
        self._tell = tell
        self._say_refused = say_refused
        self._no_room = no_room
        self._arrived: dict[bytes, tuple[UpdateStored, bytes]] = {}
        self._arrived_bytes = 0
        self._refused: list[tuple[UpdateStored, str]] = []

    def __contains__(self, update_id: bytes) -> bool:
        return update_id in self._arrived

    def add(self, update: UpdateStored, payload: bytes, now_s: float) -> None:
        """An update is whole."""
        self._arrived[update.update_id] = update, payload
        self._arrived_bytes += len(payload)
        if not self.running or self._arrived_bytes > BURST_BYTES_MAX:
            self.settle(now_s)

    def refuse(self, update: UpdateStored, reason: str, now_s: float) -> None:
        """An update is not taken; on disk before the device hears of it."""
        self._refused.append((update, reason))
        if not self.running:
            self.settle(now_s)

    def settle(self, now_s: float) -> None:
        """Write what has come so far, and go on with it."""
        arrived, self._arrived, self._arrived_bytes = tuple(self._arrived.values()), {}, 0
        refused, self._refused = self._refused, []
        if refused:
            self._refuse(refused, now_s)
        if len(arrived) > 1:
            self._rounds.keep(arrived)
        for update, payload in arrived:
            self._take(update, payload, now_s)

    def _refuse(self, refused: list[tuple[UpdateStored, str]], now_s: float) -> None:
        try:
            with self._store.transaction():
                for update, reason in refused:
                    self._store.refuse_update(update, reason, now_s)
        except DiskFullError:
            for update, _reason in refused:
                self._no_room(update.device)
            return
        for update, reason in refused:
            self._say_refused(update, reason)

    def _take(self, update: UpdateStored, payload: bytes, now_s: float) -> None:
        try:
            self._hand_over(update, payload, now_s)
        except DiskFullError:
            self._no_room(update.device)

    def _hand_over(self, update: UpdateStored, payload: bytes, now_s: float) -> None:
        known = self._store.update(update.update_id)
        # Refused since it was announced, with another offer of it: then that is the decision.
        settled = known is not None and known.settled_at is not None
        if not settled and self._rounds.current.expects(update):
            self._rounds.take(update, payload, now_s)
            return
        if known is None:
            self._store.refuse_update(update, self._rounds.current.late_word, now_s)
            self._rounds.current.note_heard(update.device, update.round)
        self._tell(update.device, update.update_id)
