"""What the owner says after enrolling: no more, yes again, out for good. It is in the journal.

1. `opt_out` and `opt_in` are one line in the journal, which any process may write beside a device
   that runs; the device looks with its rules, every five seconds and more often while it has
   something to do. A reboot changes nothing.
2. A device that hears of an opt-out withdraws its check-in with the reason `opted_out`, gives up
   what is not sealed, and hangs up. From then on nothing is sent, a sealed update neither: it stays
   in the journal, is offered again after an opt-in, and is then decided as any late one. The app
   keeps its model.
3. `leave` revokes the device and deletes what it kept, whether it runs or not. A device that runs
   is asked through the journal; it says so to the coordinator, and ends.
"""

import queue
import time
from pathlib import Path
from typing import Final

from edge_sdk.enrolment import CA_FILE, tls_files
from edge_sdk.journal import JOURNAL_FILE, Enrolment, SqliteJournal
from wire import Address, Crypto, Ed25519, PotluckError, RemoteProtocolError, frames
from wire.lock import LOCK_FILE, AlreadyRunningError, InstanceLock
from wire.messages import Leave, Revoked

MODELS_DIR: Final = "models"
# However often the loop turns.
LOOK_EVERY_S: Final = 1.0
LEAVE_EVERY_S: Final = 2.0
# How long a device that runs may take to end, beyond what it waits for its coordinator.
_ENDS_S: Final = 15.0


class ConsentError(PotluckError):
    """The owner's word could not be carried out; the text says why and what to do."""


def opt_out(state_dir: Path) -> bool:
    """Send nothing any more; False when that was so already.

    Raises:
        JournalError: no device has run there, or its journal cannot be written.
    """
    return _say(state_dir, opted_out=True)


def opt_in(state_dir: Path) -> bool:
    """Take part again; False when that was so already.

    Raises:
        JournalError: no device has run there, or its journal cannot be written.
    """
    return _say(state_dir, opted_out=False)


def _say(state_dir: Path, *, opted_out: bool) -> bool:
    journal = _opened(state_dir)
    try:
        return journal.set_opted_out(opted_out=opted_out)
    finally:
        journal.close()


def _opened(state_dir: Path) -> SqliteJournal:
    """The journal to write to; it is not made where there is none."""
    SqliteJournal(state_dir, read_only=True).close()
    return SqliteJournal(state_dir)


class Heard:
    """What a device that runs has heard of its owner: looks into its journal, not too often.

    Attributes:
        opted_out: nothing is to be sent.
        leaving: the device is to leave and to end.
    """

    def __init__(self, journal: SqliteJournal) -> None:
        self.opted_out = journal.opted_out
        self.leaving = journal.leave_asked
        self._journal = journal
        self._look_at_s = 0.0

    def look(self, now_s: float, *, at_once: bool = False) -> bool:
        """Whether the owner has said something new."""
        if now_s < self._look_at_s and not at_once:
            return False
        self._look_at_s = now_s + LOOK_EVERY_S
        before = self.opted_out, self.leaving
        self.opted_out, self.leaving = self._journal.opted_out, self._journal.leave_asked
        return (self.opted_out, self.leaving) != before


# -- leaving -------------------------------------------------------------------------------------


def leave(
    state_dir: Path,
    *,
    broker: str | None = None,
    crypto: Crypto | None = None,
    timeout_s: float = 10.0,
) -> bool:
    """Take a device out and delete what it kept, from any process; blocks.

    Args:
        state_dir: the device's.
        broker: a URL that replaces the one that the device was enrolled with.
        crypto: the signature scheme.
        timeout_s: how long to wait for the coordinator.

    Returns:
        Whether the coordinator has confirmed, or had nothing to; all is deleted in any case.

    Raises:
        JournalError: no device has run there, or its journal cannot be written.
        ConsentError: the process that runs there does not end; nothing is deleted.
    """
    journal = _opened(state_dir)
    try:
        journal.ask_to_leave()
        lock = _when_it_has_ended(state_dir, timeout_s + _ENDS_S)
        try:
            enrolment = journal.enrolment
            confirmed = enrolment is None or journal.revoked is not None
            if enrolment is not None and not confirmed:
                asking = _Leaving(journal, enrolment, crypto or Ed25519())
                confirmed = asking.ask(broker or enrolment.broker, state_dir, timeout_s)
        finally:
            lock.release()
    finally:
        journal.close()
    delete_state(state_dir)
    return confirmed


def delete_state(state_dir: Path) -> None:
    """Remove what a device has made; what else is there is not ours."""
    import contextlib  # noqa: PLC0415 - once in a device's life
    import shutil  # noqa: PLC0415 - as above

    shutil.rmtree(state_dir / MODELS_DIR, ignore_errors=True)
    for pattern in (f"{JOURNAL_FILE}*", CA_FILE, f"{LOCK_FILE}*"):
        for path in state_dir.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state_dir.rmdir()


def _when_it_has_ended(state_dir: Path, wait_s: float) -> InstanceLock:
    give_up_at_s = time.monotonic() + wait_s
    while True:
        try:
            return InstanceLock(state_dir)
        except AlreadyRunningError as error:
            if time.monotonic() >= give_up_at_s:
                raise ConsentError(
                    f"{state_dir}: the device that runs here does not end; stop it, then try again"
                ) from error
            time.sleep(0.1)


class _Leaving:
    """Says to the coordinator that the device leaves, without a driver and without a task."""

    def __init__(self, journal: SqliteJournal, enrolment: Enrolment, crypto: Crypto) -> None:
        self._signer = crypto.signer(journal.identity_key(b""))
        self._crypto = crypto
        self._key = enrolment.coordinator_key
        self._up = Address(enrolment.federation, enrolment.device, "up")
        self._down = Address(enrolment.federation, enrolment.device, "down")
        self._ca = enrolment.ca
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def _on_message(self, topic: str, data: bytes) -> None:
        if topic != self._down.topic:
            return
        try:
            message = frames.open_frame(data, self._down, self._key, self._crypto)
        except RemoteProtocolError:
            return
        if isinstance(message, Revoked):
            self._heard.put("revoked")

    def ask(self, broker: str, directory: Path, timeout_s: float) -> bool:
        """Again and again until it is confirmed, or the time is over."""
        from wire import BrokerAddress, MqttLink  # noqa: PLC0415 - paho-mqtt, when it is used

        address = BrokerAddress.parse(broker)
        link = MqttLink(
            address,
            self._up.device,
            subscriptions=(self._down.topic,),
            on_message=self._on_message,
            on_up=lambda _bytes: self._heard.put("up"),
            on_down=lambda _reason: None,
            tls=tls_files(address, self._ca, directory),
        )
        link.start()
        give_up_at_s = time.monotonic() + timeout_s
        try:
            while (left_s := give_up_at_s - time.monotonic()) > 0.0:
                try:
                    if self._heard.get(timeout=min(LEAVE_EVERY_S, left_s)) == "revoked":
                        return True
                except queue.Empty:
                    pass
                link.publish(self._up.topic, frames.seal(Leave(), self._up, self._signer))
        finally:
            link.stop()
        return False
