"""Which devices are about: check-ins, what each is answered with, and who is called back.

Of every device the number of its last check-in is remembered, also over a restart: an older one is
a replay. They are written in batches; only the first of a boot is written at once.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from coordinator import quarantine
from coordinator.conductor import Conductor
from coordinator.floods import Floods
from coordinator.headroom import Headroom
from coordinator.intake import Intake
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.pace import LEASE_SLACK, Pacer
from coordinator.registry import STABLE
from coordinator.signals import DeviceAsks
from coordinator.store import Store
from wire import RemoteProtocolError
from wire.errors import SchemaMismatchError, UnknownVersionError
from wire.messages import Available, ComeBackAt, Declined, Message, Refused, Release

_ROUNDS_TOLD_AGAIN: Final = 2
_BOOT_BITS: Final = 32
_EVALUATES_SINCE_MINOR: Final = 1
# After a restart a round's invitees and as many again are recalled at once.
_RECALLED: Final = 2
_OUTDATED: Final = "description_outdated"


class Attendance:
    """The check-ins of one federation.

    Args:
        store: where the numbers of check-ins are kept.
        rounds: who has a use for devices.
        intake: what updates have come.
        models: the model through its versions.
        leases: which devices are there.
        pacer: how long each is to be silent.
        floods: whether a check-in may cost a write of its own.
        headroom: whether there is room on the disk.
        enrolled: devices that may speak, as they come and go.
        last: the number of each device's last check-in, as the store has it.
        publish: sends a message to a device.
        count_incident: told of a device that holds what was never made.
        description_digest: of the description that devices without a model of their own have.

    Attributes:
        minors: which minor version of the protocol each device spoke when it last checked in.
    """

    def __init__(
        self,
        *,
        store: Store,
        rounds: Conductor,
        intake: Intake,
        models: Models,
        leases: Leases,
        pacer: Pacer,
        floods: Floods,
        headroom: Headroom,
        enrolled: Collection[str],
        last: Mapping[str, int],
        publish: Callable[[Message, str], None],
        count_incident: Callable[[str, RemoteProtocolError], None],
        description_digest: bytes = b"",
    ) -> None:
        self.minors: dict[str, int] = {}
        self._store = store
        self._rounds = rounds
        self._intake = intake
        self._models = models
        self._leases = leases
        self._pacer = pacer
        self._floods = floods
        self._headroom = headroom
        self._enrolled = enrolled
        self._publish = publish
        self._count_incident = count_incident
        self._description_digest = description_digest
        self._last = dict(last)
        self._unwritten: set[str] = set()
        self._boots_are_new = False

    def understands_evaluations(self, device: str) -> bool:
        """Whether a device speaks a version of the protocol that has evaluations."""
        return self.minors.get(device, 0) >= _EVALUATES_SINCE_MINOR

    def last_check_in(self, device: str) -> int:
        """The number of a device's last check-in, 0 if it never was here."""
        return self._last.get(device, 0)

    # -- a device speaks ---------------------------------------------------------------------

    def take(self, device: str, message: Available, now_s: float) -> None:
        """A device says that it is there: it is invited, told when to come back, or waited with.

        Raises:
            RemoteProtocolError: the check-in is a repeated one.
            SchemaMismatchError: the device trains another model.
        """
        if message.check_in <= self._last.get(device, 0):
            raise RemoteProtocolError(f"check-in {message.check_in} is not newer than the last")
        if message.description_digest not in (b"", self._description_digest):
            self._note(device, message.check_in, now_s)
            self._say_outdated(device, now_s)
            return
        if message.schema_digest != bytes.fromhex(self._models.manifest.schema.digest):
            self._publish(
                Refused(Available.KIND, "schema_mismatch", "another task's model"), device
            )
            raise SchemaMismatchError("the device trains another model")
        self._note(device, message.check_in, now_s)
        self._doubt(device, message.held_version)
        self._offer_release(device, message.released_version)
        if self._rounds.current.may_still_train(device, now_s):
            self._rounds.step(DeviceAsks(device, message.check_in), now_s)
            return
        self._rounds.evaluations.lost(device)
        if self._rounds.current.waits_for(device):
            # It has nothing sealed, or it would not check in, and its round is as good as over.
            self._rounds.lose(device, "deadline_passed", now_s)
        if self._rounds.finished:
            idle_s = self._pacer.idle_s(device, message.check_in)
            self._publish(ComeBackAt(message.check_in, idle_s, "run_over"), device)
            return
        until_s = self._rounds.quarantine.until_s(device, now_s)
        if until_s is not None:
            delay_s = min(until_s - now_s, quarantine.COME_BACK_S)
            self._publish(ComeBackAt(message.check_in, delay_s, quarantine.QUARANTINED), device)
            return
        after_s = self._pacer.silence_s(
            device,
            message.check_in,
            message.window_s,
            opens_in_s=self._rounds.planner.earliest_s(now_s) - now_s,
            now_s=now_s,
        )
        if after_s is not None:
            self._publish(ComeBackAt(message.check_in, after_s, "not_needed"), device)
        silent_s = LEASE_SLACK * (after_s or 0.0)
        self._leases.check_in(device, message, now_s, silent_s=silent_s)
        self._rounds.opening.plan_soon(now_s)

    def _offer_release(self, device: str, in_use: int) -> None:
        """Tell a device of the release that it does not use, unless it has said why not."""
        released = self._store.released(STABLE)
        if released is None or released["version"] == in_use:
            return
        if not self._store.has_vetoed(device, released["version"]):
            self._publish(Release(released["version"], released["digest"], STABLE), device)

    def _say_outdated(self, device: str, now_s: float) -> None:
        """Its model is what this coordinator served once: it has to fetch it before it works."""
        self._leases.end(device)
        self._rounds.evaluations.lost(device)
        if self._rounds.current.waits_for(device):
            self._rounds.lose(device, _OUTDATED, now_s)
        self._publish(Refused(Available.KIND, _OUTDATED), device)

    def _note(self, device: str, check_in: int, now_s: float) -> None:
        before, self._last[device] = self._last.get(device, 0), check_in
        first_of_boot = check_in >> _BOOT_BITS != before >> _BOOT_BITS
        self._unwritten.add(device)
        self._boots_are_new |= first_of_boot and self._floods.may_write(device, now_s)
        if not self._intake.burst.running:
            self.write_boots()

    def _doubt(self, device: str, held_version: int) -> None:
        """A version that this coordinator has not made: a lie, or what a lost future has left."""
        if held_version <= self._models.version or held_version <= self._models.lost_up_to:
            return
        self._count_incident(
            device,
            UnknownVersionError(
                f"holds version {held_version}, which was not made here; if many devices say so,"
                " the state directory is an old copy: use `potluck coordinator restore`"
            ),
        )

    def check_is_no_replay(self, device: str, message: Declined) -> None:
        """Raise RemoteProtocolError for what a device says of a check-in that is not its last."""
        if message.check_in < self._last.get(device, 0):
            raise RemoteProtocolError(f"declines check-in {message.check_in}, an old one")

    # -- a process begins, or its link -------------------------------------------------------

    def recall(self, now_s: float) -> None:
        """Say again what may have been lost with the link, or with this process before it.

        Settlements of the last rounds may have been lost between the transaction and the broker,
        and so may invitations. Of the others as many as a round needs are asked to speak again now
        rather than when their leases would have ended, which are not kept over a restart; and some
        more after them, at the rate that the file allows.
        """
        last = self._store.last_round()
        for number in range(max(last - _ROUNDS_TOLD_AGAIN, 1), last + 1):
            for row in self._store.updates(number):
                if row.device in self._enrolled:
                    self._intake.tell(row.device, row.update_id)
        opened = self._store.round_opened(last)
        invited = {} if opened is None else opened.invited
        others = []
        for device, check_in in sorted(self._last.items()):
            if device not in self._enrolled:
                continue
            if device in invited and self._rounds.current.may_still_train(device, now_s):
                # What was only in memory of its check-ins is in its invitation.
                asked = DeviceAsks(device, max(check_in, invited[device]))
                self._rounds.step(asked, now_s)
            else:
                others.append(device)
        at_once = _RECALLED * self._rounds.planner.to_invite()
        for device, after_s in self._pacer.recall(others, last, at_once):
            # One that was never heard may have spoken before anybody listened.
            check_in = max(self._last[device], 1)
            self._publish(ComeBackAt(check_in, after_s, "coordinator_is_back"), device)

    # -- what is written ---------------------------------------------------------------------

    @property
    def is_unwritten(self) -> bool:
        """Whether there are check-ins that only memory has."""
        return bool(self._unwritten)

    def write_boots(self) -> None:
        """Write what has come, if one of it is the first of a boot.

        A restart can only recall a device whose boot it knows; the others can wait. Without room
        all of it waits.
        """
        if self._boots_are_new:
            with self._headroom.or_not():
                self.write()

    def write(self) -> None:
        """Write the numbers of check-ins that only memory has."""
        if self._unwritten:
            self._store.note_check_ins({device: self._last[device] for device in self._unwritten})
            self._unwritten = set()
        self._boots_are_new = False
