"""What must hold after every event of a world, whatever has gone wrong in it.

Each checker is one function whose docstring is its promise. It looks at evidence: the coordinator's
disk as it is and as it was after the event before, what the coordinator has published since, and
the devices. A broken promise raises `ViolationError`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from coordinator.models import tensors_from_bytes
from coordinator.round import RESUME_GRACE_S
from coordinator.signals import RoundOpened
from coordinator.store import UpdateRow
from coordinator.timers import DISK_AGAIN_S
from edge_sdk import Model
from edge_sdk.parts import PARTS_MAX
from edge_sdk.session import Phase
from fleet import reference
from fleet.device_host import DeviceHost, VirtualDevice
from fleet.spending import BEGINNINGS, Book, DayBook, WorkBook
from fleet.virtual import VirtualFleet
from wire import frames, limits, tensors_digest, topics
from wire.messages import Invite, Message, Receipt, Release, Settled

_CHECKED_KINDS: Final = frozenset({Invite.KIND, Receipt.KIND, Release.KIND, Settled.KIND})
_KIND_OFFSET: Final = 4
# A closed round's evidence is looked at once more, and then never again.
_ROUNDS_BACK: Final = 2
_TIMERS_MAX: Final = 8
# Held, released, the next one and one that waits for its check; one more whose save a crash cut off
# from its clean-up; personal.
_MODEL_FILES_MAX: Final = 6
_TORN_FILES_MAX: Final = 3
_DEADLINE_SLACK_S: Final = 1.0
# Hosts that did nothing in an event are looked at this often all the same: who knows.
_SWEEP_EVERY: Final = 256


class ViolationError(AssertionError):
    """A promise was broken; the text says which and how."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


@dataclass(slots=True)
class Evidence:
    """What checkers look at.

    `open` is the round that is open: its number, since when, and how often the gateway's clock had
    been set by then.
    """

    fleet: VirtualFleet
    published: list[tuple[str, Message]] = field(default_factory=list)
    ledger: dict[bytes, UpdateRow] = field(default_factory=dict)
    ledger_before: dict[bytes, UpdateRow] = field(default_factory=dict)
    rounds: dict[int, tuple[str, RoundOpened]] = field(default_factory=dict)
    open: tuple[int, float, int] | None = None
    version: int = 0
    version_before: int = 0
    released: set[int] = field(default_factory=lambda: {0})
    exact: dict[int, dict[str, Any]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    settled_on_devices: dict[str, int] = field(default_factory=dict)
    stirred: list[DeviceHost] = field(default_factory=list)
    books: dict[str, Book] = field(default_factory=dict)
    work_books: dict[str, WorkBook] = field(default_factory=dict)
    day_books: dict[str, DayBook] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    core: int | None = None
    used: dict[str, Model] = field(default_factory=dict)
    by_name: dict[str, VirtualDevice] = field(init=False)

    def __post_init__(self) -> None:
        self.by_name = {device.name: device for device in self.fleet.devices}


class Witness:
    """Collects the evidence of a world and lets every checker look at it, event by event.

    What has not changed is not looked at again: the ledger when nothing was written, a device that
    the event has not reached.

    Args:
        make: makes the fleet; it is given what to tell of publications.
        more: checked after every event, beside what always is.
    """

    def __init__(
        self,
        make: Callable[[Callable[[str, bytes], None]], VirtualFleet],
        more: Sequence[Callable[[Evidence], None]] = (),
    ) -> None:
        self._published: list[tuple[str, bytes]] = []
        self.fleet = make(lambda topic, data: self._published.append((topic, data)))
        self.evidence = Evidence(self.fleet)
        self._hosts = {host.name: host for host in self.fleet.hosts}
        self._hosts_by_device = {host.device.name: host for host in self.fleet.hosts}
        self._changes = -1
        self._more = tuple(more)
        self.evidence.books = {
            host.device.name: Book(host)
            for host in self.fleet.hosts
            if host.policy.bytes_per_day_max
        }
        self.evidence.work_books = {
            host.device.name: WorkBook(host)
            for host in self.fleet.hosts
            if host.policy.training_s_per_day_max
        }
        self.fleet.network.on_sent = self._note_sent
        self._read_ledger()
        self.fleet.world.after_event = self.check

    def check(self) -> None:
        """Look at what the last event has done.

        Raises:
            ViolationError: a promise was broken.
        """
        evidence, world = self.evidence, self.fleet.world
        changes, sweep = self.fleet.gateway.disk.changes, world.events % _SWEEP_EVERY == 0
        if not (world.stirred or self._published or changes != self._changes or sweep):
            a_round_ends_by_its_deadline(evidence)
            return
        evidence.published = list(self._heard()) if self._published else []
        if sweep:
            evidence.stirred = self.fleet.hosts
        else:
            evidence.stirred = [self._hosts[n] for n in world.stirred if n in self._hosts]
        world.stirred.clear()
        if changes != self._changes:
            self._changes = changes
            self._read_ledger()
            for checker in LEDGER_CHECKERS:
                checker(evidence)
        for look in (*EVENT_CHECKERS, *self._more):
            look(evidence)
        evidence.begun.clear()

    def _note_sent(self, device: str, data: bytes) -> None:
        host = self._hosts_by_device.get(device)
        if host is not None and host.opted_out and not host.device.link.allowed:
            raise ViolationError("nothing_is_sent_after_an_opt_out", f"{host.name}: {data[4]}")
        if device in self.evidence.books and data[_KIND_OFFSET] in BEGINNINGS:
            self.evidence.begun.append(device)
        day_book = self.evidence.day_books.get(device)
        if day_book is not None:
            day_book.sent()

    def _heard(self) -> Iterator[tuple[str, Message]]:
        for topic, data in self._published:
            if data[_KIND_OFFSET] in _CHECKED_KINDS:
                address = topics.parse(topic)
                yield address.device, frames.decode(frames.parse(data), address)
        self._published.clear()

    def _read_ledger(self) -> None:
        evidence, database = self.evidence, self.fleet.gateway.disk.database
        (last,) = database.execute("SELECT COALESCE(MAX(round), 0) FROM rounds").fetchone()
        since = last - _ROUNDS_BACK
        rows = database.execute(
            "SELECT * FROM updates WHERE collected_in >= ?", (since,)
        ).fetchall()
        evidence.ledger_before = {
            key: row for key, row in evidence.ledger.items() if row.collected_in >= since
        }
        evidence.ledger = {bytes(row["update_id"]): UpdateRow.read(row) for row in rows}
        for row in database.execute("SELECT * FROM rounds WHERE round >= ?", (since,)).fetchall():
            opened = msgspec.msgpack.decode(row["record"], type=RoundOpened)
            more = database.execute(
                "SELECT device, check_in FROM invitations WHERE round = ?", (row["round"],)
            )
            invited = opened.invited | dict(more.fetchall())
            opened = msgspec.structs.replace(opened, invited=invited)
            evidence.rounds[row["round"]] = (row["status"], opened)
        (number,) = database.execute(
            "SELECT MAX(round) FROM rounds WHERE status = 'open'"
        ).fetchone()
        if number is None:
            evidence.open = None
        elif evidence.open is None or evidence.open[0] != number:
            gateway = self.fleet.gateway
            evidence.open = (number, gateway.world.now_s, gateway.wall.steps)
        (version,) = database.execute("SELECT MAX(version) FROM models").fetchone()
        evidence.version_before, evidence.version = evidence.version, version or 0
        evidence.released |= {r["version"] for r in database.execute("SELECT * FROM releases")}


# -- after every change of the coordinator's disk --------------------------------------------------


def each_update_is_decided_once(evidence: Evidence) -> None:
    """What is settled stays settled, as it was; what is receipted stays receipted."""
    for key, before in evidence.ledger_before.items():
        now = evidence.ledger.get(key)
        if now is None:
            raise ViolationError("each_update_is_decided_once", f"{key.hex()} left the ledger")
        if before.receipted_at is not None and now.receipted_at != before.receipted_at:
            raise ViolationError("each_update_is_decided_once", f"{key.hex()}: another receipt")
        if before.counted is not None and (now.counted, now.reason) != (
            before.counted,
            before.reason,
        ):
            raise ViolationError("each_update_is_decided_once", f"{key.hex()}: decided again")


def one_update_counts_for_a_device_and_a_round(evidence: Evidence) -> None:
    """No device counts twice in a round."""
    counted = [(row.round, row.device) for row in evidence.ledger.values() if row.counted]
    if len(set(counted)) != len(counted):
        raise ViolationError("one_update_counts_for_a_device_and_a_round", str(sorted(counted)))


def only_the_invited_count(evidence: Evidence) -> None:
    """What counts was trained by an invited device, on the base of its round, not long ago."""
    for row in evidence.ledger.values():
        if row.counted:
            _status, opened = evidence.rounds[row.round]
            if row.device not in opened.invited or row.base_version != opened.base_version:
                raise ViolationError("only_the_invited_count", f"{row.device} in {row.round}")
            collected = evidence.rounds[row.collected_in][1]
            if not 0 <= collected.base_version - row.base_version <= collected.staleness_max:
                raise ViolationError("only_the_invited_count", f"{row.device}: too stale")


def what_is_not_settled_is_in_the_spool(evidence: Evidence) -> None:
    """A receipted update can still be counted until it is decided: its payload is on disk."""
    database = evidence.fleet.gateway.disk.database
    spooled = {bytes(key) for (key,) in database.execute("SELECT update_id FROM spool")}
    for key, row in evidence.ledger.items():
        if row.receipted_at is not None and row.counted is None and key not in spooled:
            raise ViolationError("what_is_not_settled_is_in_the_spool", key.hex())


def what_is_spooled_is_what_was_offered(evidence: Evidence) -> None:
    """Every payload has the digest that its device has signed."""
    payloads = evidence.fleet.gateway.disk.payloads
    for key, row in evidence.ledger.items():
        known = key in evidence.ledger_before
        if not known and key in payloads and hashlib.sha256(payloads[key]).digest() != row.digest:
            raise ViolationError("what_is_spooled_is_what_was_offered", key.hex())


def versions_grow_one_by_one(evidence: Evidence) -> None:
    """A version is the one before plus one, and belongs to a committed round."""
    if evidence.version not in (evidence.version_before, evidence.version_before + 1):
        raise ViolationError(
            "versions_grow_one_by_one", f"{evidence.version_before} -> {evidence.version}"
        )
    committed = sum(1 for status, _ in evidence.rounds.values() if status == "committed")
    if evidence.version != committed:
        raise ViolationError(
            "versions_grow_one_by_one", f"version {evidence.version}, {committed} rounds committed"
        )


def the_model_is_the_mean_of_what_counted(evidence: Evidence) -> None:
    """A new version is the one before plus what its round's rule makes of the counted payloads.

    What is stale weighs less: 1 / sqrt(1 + s), s being how many versions old its base is.
    """
    if evidence.version in evidence.exact:
        return
    models = evidence.fleet.coordinator.models
    disk = evidence.fleet.gateway.disk
    row = disk.database.execute(
        "SELECT models.round, models.digest, served, exact FROM models JOIN tensors"
        " USING (version) WHERE version = ?",
        (evidence.version,),
    ).fetchone()
    if row is None:
        return
    exact = tensors_from_bytes(models.schema, row["exact"])
    served = tensors_from_bytes(models.schema, row["served"])
    evidence.exact[evidence.version] = exact
    if bytes.fromhex(tensors_digest(models.schema, served)) != row["digest"]:
        raise ViolationError("the_model_is_the_mean_of_what_counted", "the digest is another")
    before = evidence.exact.get(evidence.version - 1)
    if before is None:
        return
    opened = evidence.rounds[row["round"]][1]
    counted = sorted(
        (r for r in evidence.ledger.values() if r.counted and r.collected_in == row["round"]),
        key=lambda r: r.update_id,
    )
    factors = [(1.0 + opened.base_version - r.base_version) ** -0.5 for r in counted]
    plan = opened.aggregation
    updates = reference.matrix_of([disk.payloads[r.update_id] for r in counted], models.schema)
    change = reference.aggregate(
        plan, updates, [r.weight for r in counted], evidence.norms, factors
    )
    norms = [*evidence.norms, *np.linalg.norm(updates, axis=1).tolist()]
    evidence.norms = norms[-reference.NORMS_KEPT :]
    start = 0
    for name, values in exact.items():
        step = change[start : start + values.size].reshape(values.shape)
        start += values.size
        wanted = before[name] + plan.server_learning_rate * step
        if not np.allclose(values, wanted, rtol=0.0, atol=1e-5):
            raise ViolationError(
                "the_model_is_the_mean_of_what_counted", f"version {evidence.version}: {name}"
            )


def nobody_honest_is_quarantined(evidence: Evidence) -> None:
    """No device of these worlds means harm: whatever breaks, none is taken for an attacker."""
    store = evidence.fleet.gateway.disk.database
    rows = store.execute(
        "SELECT device FROM standing WHERE quarantined_until IS NOT NULL"
    ).fetchall()
    if rows:
        raise ViolationError("nobody_honest_is_quarantined", rows[0]["device"])


def a_committed_round_has_its_quorum(evidence: Evidence) -> None:
    """No version is made of fewer updates than the quorum, or of more than the cohort."""
    for number, (status, opened) in evidence.rounds.items():
        if status != "committed":
            continue
        collected = [r for r in evidence.ledger.values() if r.collected_in == number]
        counted = sum(1 for r in collected if r.counted)
        seen = bool(collected)
        if seen and not opened.needed <= counted <= opened.cohort:
            raise ViolationError("a_committed_round_has_its_quorum", f"round {number}: {counted}")


def who_trained_does_not_evaluate(evidence: Evidence) -> None:
    """A version is measured by devices whose updates are not in it, and once by each."""
    rows = evidence.fleet.gateway.disk.database.execute(
        "SELECT evaluations.device, evaluations.version FROM evaluations JOIN models"
        " USING (version) JOIN updates ON updates.collected_in = models.round"
        " AND updates.device = evaluations.device WHERE updates.counted = 1"
    ).fetchall()
    if rows:
        raise ViolationError("who_trained_does_not_evaluate", str([tuple(row) for row in rows]))


# -- after every event -----------------------------------------------------------------------------


def nothing_is_said_before_it_is_on_disk(evidence: Evidence) -> None:
    """Receipts and settlements tell what the ledger holds; releases what is released."""
    for device, message in evidence.published:
        if isinstance(message, Receipt | Settled):
            row = evidence.ledger.get(message.update_id) or _row(evidence, message.update_id)
            if row is None or row.device != device:
                raise ViolationError("nothing_is_said_before_it_is_on_disk", repr(message))
            if isinstance(message, Receipt) and row.receipted_at is None:
                raise ViolationError("nothing_is_said_before_it_is_on_disk", "a receipt too early")
            if isinstance(message, Settled) and (row.counted, row.reason) != (
                message.counted,
                message.reason,
            ):
                raise ViolationError("nothing_is_said_before_it_is_on_disk", repr(message))
        elif isinstance(message, Release) and message.version not in evidence.released:
            raise ViolationError("nothing_is_said_before_it_is_on_disk", repr(message))


def nobody_is_invited_who_has_not_spoken(evidence: Evidence) -> None:
    """An invitation answers a check-in that the device has really made, to a round that is open."""
    for device, message in evidence.published:
        if isinstance(message, Invite):
            made = evidence.by_name[device].driver.session
            if message.check_in > made.check_in:
                raise ViolationError("nobody_is_invited_who_has_not_spoken", device)
            if evidence.rounds.get(message.round, ("", None))[0] != "open":
                raise ViolationError("nobody_is_invited_who_has_not_spoken", f"{message.round}")


def a_device_uses_released_models_alone(evidence: Evidence) -> None:
    """The app's model is version 0 or one that was released, and has the digest of that."""
    for host in evidence.stirred:
        model = host.device.driver.released
        if evidence.used.get(host.name) is model:
            continue
        evidence.used[host.name] = model
        models = evidence.fleet.coordinator.models
        row = evidence.fleet.coordinator.store.model(model.version)
        digest = bytes.fromhex(tensors_digest(models.schema, model.tensors))
        if model.version not in evidence.released or row is None or digest != row["digest"]:
            raise ViolationError(
                "a_device_uses_released_models_alone", f"{host.name} runs version {model.version}"
            )


def a_vetoed_release_never_reaches_the_app(evidence: Evidence) -> None:
    """What a device's own check is against it does not use, and it always has a whole model."""
    for host in evidence.stirred:
        veto, model = host.disk.last_veto, host.device.driver.released
        if veto is not None and model.version == veto.version:
            raise ViolationError(
                "a_vetoed_release_never_reaches_the_app", f"{host.name} uses {model.version}"
            )
        if model.tensors.keys() != host.device.driver.manifest.tensors.keys():
            raise ViolationError(
                "a_vetoed_release_never_reaches_the_app", f"{host.name} has half a model"
            )


def a_sealed_update_waits_for_its_settlement(evidence: Evidence) -> None:
    """A device forgets an update only when the ledger has decided it, in the same way."""
    for host in evidence.stirred:
        history = host.disk.history
        if len(history) == evidence.settled_on_devices.get(host.name, 0):
            continue
        evidence.settled_on_devices[host.name] = len(history)
        last = history[-1]
        row = evidence.ledger.get(last.update_id) or _row(evidence, last.update_id)
        if row is None or (row.counted, row.reason) != (last.counted, last.reason):
            raise ViolationError("a_sealed_update_waits_for_its_settlement", host.name)


def memory_is_bounded(evidence: Evidence) -> None:
    """Timers, transfers, leases and journals stay within their bounds."""
    fleet = evidence.fleet
    coordinator = fleet.coordinator
    if len(coordinator.rounds.timers) > _TIMERS_MAX:
        raise ViolationError("memory_is_bounded", "the coordinator's timers")
    if coordinator.partials > limits.PARTIALS_PER_DEVICE_MAX * len(fleet.devices):
        raise ViolationError("memory_is_bounded", "the coordinator's transfers")
    for host in evidence.stirred:
        if len(host.device.driver.timers) > _TIMERS_MAX:
            raise ViolationError("memory_is_bounded", f"{host.name}: timers")
        if len(host.shelf.files) > _MODEL_FILES_MAX or len(host.shelf.torn) > _TORN_FILES_MAX:
            raise ViolationError("memory_is_bounded", f"{host.name}: model files")
        if len(host.parts.parts) > PARTS_MAX:
            raise ViolationError("memory_is_bounded", f"{host.name}: parts of downloads")


def work_has_a_way_on(evidence: Evidence) -> None:
    """A running device in any phase but the last has a timer, a link to come, or a closed gate."""
    for host in evidence.stirred:
        if not host.running or host.gone:
            continue
        driver = host.device.driver
        session = driver.session
        waiting = session.phase in (Phase.UNENROLLED, Phase.REVOKED) or session.gate is None
        if not (driver.timers or waiting or not session.link):
            raise ViolationError("work_has_a_way_on", f"{host.name} in {session.phase.name}")


def budgets_are_kept(evidence: Evidence) -> None:
    """Once a day's bytes have reached its budget a device begins nothing, whatever it goes through.

    Nor does it train for longer than it may.

    Within five seconds it knows; a reboot forgets what `edge_sdk.budget` says, and no more.
    """
    for host in evidence.stirred:
        book = evidence.books.get(host.device.name)
        if book is not None:
            book.note()
        work_book = evidence.work_books.get(host.device.name)
        if work_book is not None and not work_book.kept():
            raise ViolationError("budgets_are_kept", f"{host.name} trained for {work_book.days}")
    for device in evidence.begun:
        book = evidence.books[device]
        if not book.may_begin():
            raise ViolationError("budgets_are_kept", f"{book.host.name}: {book.spent_at_s}")


def a_full_disk_ends_no_coordinator(evidence: Evidence) -> None:
    """A coordinator that runs goes on without room: it refuses, waits, and loses nothing."""
    if evidence.fleet.gateway.ended_by_its_disk:
        raise ViolationError("a_full_disk_ends_no_coordinator", "it ended")


def a_round_ends_by_its_deadline(evidence: Evidence) -> None:
    """While its coordinator runs, a round is over in its time, or soon after a restart.

    A buffer is, if it has its quorum. Whatever the clock says: a round that was opened by another
    clock than that of a restart may last as long again. A full disk puts the end off until there is
    room.
    """
    gateway = evidence.fleet.gateway
    if not gateway.running or evidence.open is None:
        return
    number, opened_s, steps = evidence.open
    opened = evidence.rounds[number][1]
    if opened.mode == "async" and opened.needed > sum(
        row.collected_in == number and row.receipted_at is not None and row.counted is None
        for row in evidence.ledger.values()
    ):
        return
    due_s = opened_s + opened.deadline_at_s - opened.opened_at_s
    if gateway.started_at_s > opened_s:
        same_clock = steps == gateway.wall.steps
        due_s = (
            max(due_s, gateway.started_at_s)
            if same_clock
            else gateway.started_at_s + due_s - opened_s
        )
        due_s += RESUME_GRACE_S
    if gateway.fuse.full:
        return  # its end cannot be written
    due_s = max(due_s, gateway.had_no_room_until_s + DISK_AGAIN_S)
    if gateway.world.now_s > due_s + _DEADLINE_SLACK_S:
        raise ViolationError("a_round_ends_by_its_deadline", f"round {number}")


def no_more_work_than_is_allowed(evidence: Evidence) -> None:
    """No more devices are in flight for buffers than the federation's file allows.

    How many that is may change from buffer to buffer; who was at work before stays so. A clock that
    is set while the gateway is off may bring back some that had been given up.
    """
    gateway = evidence.fleet.gateway
    state = evidence.fleet.coordinator.rounds.round
    if state.opened is None or state.opened.mode != "async" or gateway.wall.steps:
        return
    known = [state.opened, *(opened for _, opened in evidence.rounds.values())]
    if len(state.flights) > max(opened.concurrency for opened in known):
        raise ViolationError("no_more_work_than_is_allowed", f"{len(state.flights)} in flight")


def _row(evidence: Evidence, update_id: bytes) -> UpdateRow | None:
    row = evidence.fleet.gateway.disk.database.execute(
        "SELECT * FROM updates WHERE update_id = ?", (update_id,)
    ).fetchone()
    return None if row is None else UpdateRow.read(row)


LEDGER_CHECKERS: Final = (
    each_update_is_decided_once,
    one_update_counts_for_a_device_and_a_round,
    only_the_invited_count,
    what_is_not_settled_is_in_the_spool,
    what_is_spooled_is_what_was_offered,
    versions_grow_one_by_one,
    the_model_is_the_mean_of_what_counted,
    nobody_honest_is_quarantined,
    a_committed_round_has_its_quorum,
    who_trained_does_not_evaluate,
)
EVENT_CHECKERS: Final = (
    nothing_is_said_before_it_is_on_disk,
    nobody_is_invited_who_has_not_spoken,
    a_device_uses_released_models_alone,
    a_vetoed_release_never_reaches_the_app,
    a_sealed_update_waits_for_its_settlement,
    memory_is_bounded,
    work_has_a_way_on,
    budgets_are_kept,
    a_full_disk_ends_no_coordinator,
    no_more_work_than_is_allowed,
    a_round_ends_by_its_deadline,
)


# -- when all is calm ------------------------------------------------------------------------------


def every_receipt_was_settled(evidence: Evidence) -> None:
    """At the end no receipted update waits, and no device holds one that was decided."""
    database = evidence.fleet.gateway.disk.database
    (open_ones,) = database.execute(
        "SELECT COUNT(*) FROM updates WHERE receipted_at IS NOT NULL AND settled_at IS NULL"
    ).fetchone()
    if open_ones:
        raise ViolationError("every_receipt_was_settled", f"{open_ones} are not")
    for host in evidence.fleet.hosts:
        if not host.gone and host.device.driver.session.sealed is not None:
            raise ViolationError("every_receipt_was_settled", f"{host.name} still waits")


def every_round_was_closed(evidence: Evidence) -> None:
    """Once nothing is broken any more, the federation comes to its last round."""
    if not evidence.fleet.coordinator.finished:
        last = evidence.fleet.coordinator.store.last_round()
        raise ViolationError("every_round_was_closed", f"the last one is {last}")


def everybody_has_the_released_model(evidence: Evidence) -> None:
    """In the end every device that works runs the last release, or has said why it does not."""
    coordinator = evidence.fleet.coordinator
    latest = coordinator.models.version
    for host in evidence.fleet.hosts[: evidence.core]:
        if host.gone or host.device.driver.released.version == latest:
            continue
        veto = host.disk.last_veto
        said = veto is not None and veto.version == latest
        if not said or not coordinator.store.has_vetoed(host.device.name, latest):
            raise ViolationError("everybody_has_the_released_model", host.name)


FINAL_CHECKERS: Final = (
    every_round_was_closed,
    every_receipt_was_settled,
    everybody_has_the_released_model,
)
# With a healthy core, `Evidence.core` of the devices, and the rest broken for ever.
LIVENESS_CHECKERS: Final = (every_round_was_closed, everybody_has_the_released_model)
