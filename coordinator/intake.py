"""Updates on their way in: whether one is taken, and what its device is told.

An offer is answered by what the ledger says of it, if it says anything; else it is judged before a
byte of it is kept. A whole update goes to the round by way of `Burst`.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from coordinator.burst import Burst
from coordinator.conductor import Conductor
from coordinator.headroom import Headroom
from coordinator.inbox import Inbox
from coordinator.leases import Leases
from coordinator.participation import TOO_SLOW
from coordinator.round import COUNTED
from coordinator.signals import UpdateStored
from coordinator.store import DiskFullError, Store
from wire import RemoteProtocolError, Report, identity
from wire.errors import DuplicateError, NotInvitedError, StaleRoundError
from wire.messages import (
    Chunk,
    Message,
    Receipt,
    Refused,
    Settled,
    UpdateOffer,
    UploadStatus,
)

# Why an update is not taken now: it stays on its device, and is offered again.
DISK_FULL: Final = "disk_full"
# What an update is said to be whose line of the ledger was let go of, if it did not count.
LEDGER_TRIMMED: Final = "ledger_trimmed"


class Intake:
    """Takes in the updates of one federation.

    Args:
        federation: its name.
        store: where the ledger is.
        rounds: who has a use for updates.
        inbox: where they are put together.
        leases: which devices are there.
        headroom: whether there is room on the disk.
        publish: sends a message to a device.
        observe: told every `Report`.

    Attributes:
        burst: whole updates that are not written yet.
    """

    def __init__(
        self,
        *,
        federation: str,
        store: Store,
        rounds: Conductor,
        inbox: Inbox,
        leases: Leases,
        headroom: Headroom,
        publish: Callable[[Message, str], None],
        observe: Callable[[Report], None],
    ) -> None:
        self._federation = federation
        self._store = store
        self._rounds = rounds
        self._inbox = inbox
        self._leases = leases
        self._headroom = headroom
        self._publish = publish
        self._observe = observe
        self.burst = Burst(
            store=store,
            rounds=rounds,
            tell=self.tell,
            say_refused=self._say_refused,
            no_room=self._no_room,
        )

    # -- what devices say --------------------------------------------------------------------

    def offer(self, device: str, message: UpdateOffer, now_s: float) -> None:
        """A device has an update: say what is known of it, or take it in.

        Raises:
            RemoteProtocolError: it cannot be taken, and that is the device's fault.
        """
        try:
            self._judge(device, message, now_s)
        except DiskFullError:
            self._no_room(device)

    def chunk(self, device: str, message: Chunk, now_s: float) -> None:
        """A part of an update; see `Inbox.add` for what is raised."""
        done = self._inbox.add(device, message)
        if done is not None:
            update, payload = done
            update = msgspec.structs.replace(update, receipted_at_s=now_s)
            self.burst.add(update, payload, now_s)

    def lost(self, device: str, reason: str, round_number: int, now_s: float) -> None:
        """Nothing will come from a device; to a certain round, if not 0."""
        # This may end the round, and what has come before it is part of that.
        self.burst.settle(now_s)
        self._rounds.evaluations.lost(device, round_number)
        if self._leases.end(device) or self._rounds.current.waits_for(device):
            self._observe(Report("declined", reason, device))
        if reason == TOO_SLOW and round_number and not self._rounds.current.waits_for(device):
            self._rounds.history.note_too_slow(device, round_number)
        if not self._rounds.is_open:
            self._rounds.opening.plan_soon(now_s)
        elif self._rounds.current.waits_for(device, round_number):
            self._rounds.lose(device, reason, now_s)

    # -- whether it is taken -----------------------------------------------------------------

    def _judge(self, device: str, message: UpdateOffer, now_s: float) -> None:
        if message.update_id in self.burst:
            self.burst.settle(now_s)
        if message.update_id != identity.update_id(self._federation, message.round, device):
            raise RemoteProtocolError("the update id is not this device's for this round")
        if self._is_known(device, message):
            return
        update = self._describe(device, message, now_s)
        late = self._why_late(device, message)
        if late is not None:
            self._rounds.history.note_late(device, message.round, now_s)
            self.burst.refuse(update, late, now_s)
            return
        refusal = self._why_not(device, message)
        if isinstance(refusal, StaleRoundError | NotInvitedError):
            # No work of ours: told, counted, and given no line, or a liar could fill the ledger.
            self._publish(Settled(message.update_id, counted=False, reason=refusal.reason), device)
            raise refusal
        if refusal is not None:
            self.burst.refuse(update, refusal.reason, now_s)
            self.lost(device, refusal.reason, message.round, now_s)
            raise refusal
        if self._rounds.waits_for_room or not self._headroom.has_room(message.payload_bytes):
            self._no_room(device)
            return
        received = self._inbox.announce(device, update, message.chunk_bytes)
        if not message.chunks_follow:
            self._publish(UploadStatus(message.update_id, received), device)

    def _is_known(self, device: str, message: UpdateOffer) -> bool:
        """Whether the ledger has, or had, a line on this update: then that is the answer."""
        known = self._store.update(message.update_id)
        if known is not None:
            self.tell(device, message.update_id)
            if known.digest != message.payload_digest:
                raise DuplicateError("the same update id was offered with other bytes")
            return True
        totals = self._store.round_totals(message.round)
        if totals is None:
            return False
        counted = totals.counts(message.update_id)
        reason = COUNTED if counted else LEDGER_TRIMMED
        self._publish(Settled(message.update_id, counted, reason), device)
        return True

    def _why_late(self, device: str, message: UpdateOffer) -> str | None:
        """What to say to honest work that others were quicker with: nobody's fault."""
        if self._rounds.is_open and message.round == self._store.last_round():
            return None
        opened = self._store.round_opened(message.round)
        if (
            opened is None
            or device not in opened.invited
            or message.base_version != opened.base_version
        ):
            return None
        return self._rounds.current.why_late(opened)

    def _why_not(self, device: str, message: UpdateOffer) -> RemoteProtocolError | None:
        """Why an offered update cannot be taken, before a byte of it is."""
        opened = self._rounds.current.taken(message.round)
        if opened is None:
            return StaleRoundError(f"round {message.round} is not open")
        if device not in opened.invited:
            return NotInvitedError(f"was not invited to round {message.round}")
        if message.base_version != opened.base_version:
            return StaleRoundError(f"trained on version {message.base_version}")
        return self._inbox.why_too_large(message.payload_bytes, message.chunk_bytes)

    def _weight_cap(self) -> int:
        """The open round's: a file that is changed counts from the next round on."""
        opened = self._rounds.round.opened
        in_force = self._rounds.course.config.aggregation.weight_cap
        return in_force if opened is None else opened.weight_cap

    def _describe(self, device: str, message: UpdateOffer, now_s: float) -> UpdateStored:
        return UpdateStored(
            update_id=message.update_id,
            device=device,
            round=message.round,
            base_version=message.base_version,
            num_examples=message.num_examples,
            weight=min(message.num_examples, self._weight_cap()),
            payload_bytes=message.payload_bytes,
            payload_digest=message.payload_digest,
            metrics=dict(message.metrics),
            receipted_at_s=now_s,
            collected_in=self._collected_in(message.round),
        )

    def _collected_in(self, round_number: int) -> int:
        """Where an update for this round is entered: the round that takes it, else its own."""
        opened = self._rounds.round.opened
        if opened is None or opened.mode == "sync" or not self._rounds.is_open:
            return round_number
        return opened.round

    # -- what they are told ------------------------------------------------------------------

    def tell(self, device: str, update_id: bytes) -> None:
        """Say what the ledger says of an update."""
        row = self._store.update(update_id)
        if row is None or row.device != device:
            return
        if row.receipted_at is not None:
            self._publish(Receipt(update_id), device)
        if row.counted is not None:
            self._publish(Settled(update_id, row.counted, row.reason or COUNTED), device)

    def _say_refused(self, update: UpdateStored, reason: str) -> None:
        """Settle an update that is not taken."""
        self._rounds.current.note_heard(update.device, update.round)
        self._publish(Settled(update.update_id, counted=False, reason=reason), update.device)
        self._leases.expect(update.device)

    def _no_room(self, device: str) -> None:
        """Not now: the device keeps what it has sealed, and asks again, less and less often."""
        self._headroom.ran_out()
        self._publish(Refused(UpdateOffer.KIND, DISK_FULL, "try again later"), device)
