"""Devices that lie, shout or repeat: counted, bounded, and the round commits all the same."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.config import Rounds
from coordinator.floods import MESSAGES_AT_ONCE, MESSAGES_PER_S, Floods
from edge_sdk.session import Phase
from quantization import encode
from tests.coordinator.test_disk_full import Disk
from tests.coordinator.test_service import CHUNK, collecting, good_payload, offer, send
from tests.support.loopback import Loopback
from wire import frames, limits, topics, update_id
from wire.errors import TooOftenError
from wire.messages import (
    Available,
    Chunk,
    Declined,
    Failed,
    FetchRequest,
    Gone,
    Message,
    Receipt,
    Settled,
    UploadStatus,
)

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

MANY = 2_000


def check_in(loopback: Loopback, number: int, **changes: object) -> Available:
    session = loopback.devices[number].session
    fields: dict[str, object] = {
        "check_in": session.check_in + 1,
        "window_s": 60.0,
        "held_version": 0,
        "released_version": 0,
        "schema_digest": session.schema_digest,
        "device_class": "unknown",
        "battery_fraction": 1.0,
        "charging": True,
        "metered": False,
        "codecs": session.codecs,
    }
    return Available(**(fields | changes))  # type: ignore[arg-type] # fields are named above


def idle(directory: Path) -> Loopback:
    """Devices are there, too few for a round."""
    rounds = Rounds(count=1, cohort=5, quorum=1.0)
    loopback = Loopback(directory, count=3, rounds=rounds)
    loopback.start()
    while loopback.deliver():
        pass
    return loopback


def others_commit(loopback: Loopback) -> None:
    """The round ends well without device 0, which says no more of its own."""
    loopback.devices.pop(0)
    loopback.play()
    assert loopback.coordinator.models.version == 1


class Written(Disk):
    """Counts what reaches the disk."""

    def __init__(self, loopback: Loopback) -> None:
        super().__init__(loopback.coordinator.store)
        self.writes = 0

    def execute(self, sql: str, parameters: object = ()) -> object:
        self.writes += sql.startswith(("INSERT", "UPDATE", "DELETE", "COMMIT"))
        return super().execute(sql, parameters)


def name_of(loopback: Loopback) -> str:
    name: str = loopback.devices[0].session.device
    return name


# -- floods ----------------------------------------------------------------------------------------


def test_a_flood_of_check_ins_is_cut_off_and_costs_no_flood_of_writes(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    disk = Written(loopback)
    for number in range(MANY):
        loopback.speak(0, check_in(loopback, 0, check_in=(2 << 32) + number))
    assert disk.writes < 10
    name = name_of(loopback)
    assert loopback.incidents()[name, "too_often"] >= MANY - 2 * MESSAGES_AT_ONCE
    others_commit(loopback)


def test_a_device_that_boots_all_the_time_is_not_written_down_all_the_time(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    disk = Written(loopback)
    for boot in range(2, 402):
        loopback.speak(0, check_in(loopback, 0, check_in=(boot << 32) + 1))
    assert disk.writes < 10
    # Its latest word is written with the next batch all the same.
    loopback.coordinator.stop()
    row = loopback.coordinator.store.devices()[name_of(loopback)]
    assert row["last_check_in"] == (401 << 32) + 1


def test_a_flood_of_offers_holds_what_one_offer_holds(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    payload = good_payload()
    for number in range(MANY):
        digest = hashlib.sha256(str(number).encode()).digest()
        loopback.speak(0, offer(loopback, payload, payload_digest=digest))
    assert loopback.coordinator.partials == 1
    assert loopback.coordinator.store.updates() == []
    others_commit(loopback)


def test_a_flood_of_offers_of_a_settled_update_is_answered_a_bounded_number_of_times(
    tmp_path: Path,
) -> None:
    loopback = collecting(tmp_path)
    send(loopback, good_payload())
    said = len(loopback._wire)
    for _ in range(MANY):
        loopback.speak(0, offer(loopback, good_payload()))
    assert len(loopback._wire) - said <= 2 * MESSAGES_AT_ONCE
    others_commit(loopback)


def test_a_flood_of_chunks_of_transfers_that_nobody_announced_is_dropped(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    before = loopback.coordinator.partials
    for number in range(MANY):
        loopback.speak(0, Chunk(number.to_bytes(16, "little"), number % 7, bytes(1_000)))
    assert loopback.coordinator.partials == before
    others_commit(loopback)


def test_a_flood_of_the_same_chunk_holds_it_once(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    message = offer(loopback, bytes(3 * CHUNK), payload_bytes=3 * CHUNK)
    loopback.speak(0, message)
    for _ in range(MANY):
        loopback.speak(0, Chunk(message.update_id, 1, bytes(CHUNK)))
    assert loopback.coordinator.partials <= 1
    others_commit(loopback)


def test_a_flood_of_garbage_grows_a_count_and_nothing_else(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    said = len(loopback.reports)
    for number in range(MANY):
        loopback.inject(0, hashlib.sha512(str(number).encode()).digest() * 3)
    kinds = {reason for device, reason in loopback.incidents() if device == name_of(loopback)}
    assert len(kinds) <= 3
    assert len(loopback.reports) - said <= 3
    others_commit(loopback)


def test_a_flood_of_strangers_grows_one_count(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    for number in range(MANY):
        loopback.coordinator.on_frame(f"potluck/1/toy/{number:016x}/up", bytes(200), loopback.now_s)
    assert loopback.incidents()["-", "unknown_sender"] == MANY
    assert len(loopback.coordinator._floods._buckets) <= len(loopback.devices)
    others_commit(loopback)


def test_a_flood_of_failures_writes_no_flood_of_lines_into_the_log(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    said = len(loopback.reports)
    for number in range(MANY):
        loopback.speak(0, Failed(round=1, reason="stopped", detail=f"line {number}"))
    assert len(loopback.reports) - said < 10
    others_commit(loopback)


def test_whoever_floods_uses_up_no_allowance_but_its_own(tmp_path: Path) -> None:
    """Frames under another's name do not verify, and are not counted against it."""
    loopback = collecting(tmp_path)
    for _ in range(MANY):
        frame = frames.seal(check_in(loopback, 0), loopback.address(1), loopback.signers[0])
        loopback.inject(1, frame)
    name = loopback.devices[1].session.device
    assert (name, "too_often") not in loopback.incidents()
    loopback.play()
    assert loopback.coordinator.models.version == 1


def test_an_allowance_refills_with_time_and_is_forgotten_when_it_is_full() -> None:
    floods = Floods()
    for _ in range(int(MESSAGES_AT_ONCE)):
        floods.check("d", 10.0)
    with pytest.raises(TooOftenError):
        floods.check("d", 10.0)
    for _ in range(int(MESSAGES_PER_S)):
        floods.check("d", 11.0)
    with pytest.raises(TooOftenError):
        floods.check("d", 11.0)
    floods.check("d", 0.0 + 1e9)
    for _ in range(int(MESSAGES_AT_ONCE)):
        floods.check("e", 5.0)
    with pytest.raises(TooOftenError):
        floods.check("e", -1e9)  # a clock that was set back
    for number in range(20_000):
        floods.check(f"device-{number}", 1e9 + number)
    assert len(floods._buckets) < 10_000


# -- replays ---------------------------------------------------------------------------------------


def test_every_frame_of_a_device_replayed_later_changes_nothing(tmp_path: Path) -> None:
    recorded: list[tuple[str, bytes]] = []

    def record(topic: str, data: bytes) -> list[bytes]:
        if topic.endswith("/up"):
            recorded.append((topic, data))
        return [data]

    rounds = Rounds(count=3, cohort=3, quorum=1.0, deadline_s=60.0)
    loopback = Loopback(tmp_path, count=3, rounds=rounds, tamper=record)
    loopback.start()
    while loopback.coordinator.models.version < 1 or not loopback.coordinator.rounds.is_open:
        if not loopback.deliver():
            loopback.now_s += 2.5
            loopback.coordinator.wake(loopback.now_s)
            for device in loopback.devices:
                device.wake(loopback.now_s)
    first = [(topic, data) for topic, data in recorded if data[4] != FetchRequest.KIND]
    waiting = loopback.coordinator.rounds.round.waiting_for
    before = loopback.coordinator.store.updates()
    for topic, data in list(first) * 3:
        loopback.coordinator.on_frame(topic, data, loopback.now_s)
    assert loopback.coordinator.store.updates() == before
    assert loopback.coordinator.rounds.round.waiting_for == waiting
    loopback.play()
    assert loopback.coordinator.finished
    assert all(row.counted for row in loopback.coordinator.store.updates())


@pytest.mark.parametrize("old", [True, False], ids=["of an earlier check-in", "of this one"])
def test_a_refusal_that_is_replayed_does_not_cost_a_device_its_place(
    *, tmp_path: Path, old: bool
) -> None:
    """Only a refusal of the check-in that was invited, or of a later one, is believed."""
    loopback = collecting(tmp_path)
    current = loopback.coordinator._attendance.last_check_in(name_of(loopback))
    check = current - 1 if old else current
    loopback.speak(0, Declined(check_in=check, round=0, reason="battery_low"))
    waits = name_of(loopback) in loopback.coordinator.rounds.round.waiting_for
    assert waits is old


def test_a_last_will_of_an_earlier_link_that_is_replayed_ends_no_lease(tmp_path: Path) -> None:
    loopback = idle(tmp_path)
    name, first = name_of(loopback), loopback.devices[0].session.check_in
    for link in (1, 2):  # each breaks, with the will that it was made with
        loopback.speak(0, check_in(loopback, 0, check_in=first + link))
        loopback.speak(0, Gone(check_in=first + link - 1))
    loopback.speak(0, check_in(loopback, 0, check_in=first + 3))
    loopback.speak(0, Gone(check_in=first))
    assert name in {lease.device for lease in loopback.coordinator.leases.valid(loopback.now_s)}
    loopback.speak(0, Gone(check_in=first + 2))
    valid = loopback.coordinator.leases.valid(loopback.now_s)
    assert name not in {lease.device for lease in valid}


# -- lies ------------------------------------------------------------------------------------------


def test_a_device_that_lies_about_its_samples_weighs_no_more_than_the_cap(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    schema = loopback.coordinator.models.schema
    payload = encode("raw", schema.zeros(), schema, seed=0)
    message = offer(loopback, payload, num_examples=2**53)
    loopback.speak(0, message)
    for index in range(-(-len(payload) // CHUNK)):
        part = payload[index * CHUNK : (index + 1) * CHUNK]
        loopback.speak(0, Chunk(message.update_id, index, part))
    row = loopback.coordinator.store.update(message.update_id)
    assert row is not None
    assert (row.num_examples, row.weight) == (2**53, loopback.config.aggregation.weight_cap)
    others_commit(loopback)


@pytest.mark.parametrize(
    "lie",
    [
        {"battery_fraction": 1.5},
        {"battery_fraction": float("nan")},
        {"window_s": limits.LEASE_S_MAX * 2},
        {"window_s": -1.0},
        {"held_version": -2},
        {"check_in": 2**60},
    ],
    ids=str,
)
def test_a_check_in_out_of_its_bounds_is_malformed(tmp_path: Path, lie: dict[str, object]) -> None:
    loopback = collecting(tmp_path)
    leases = len(loopback.coordinator.leases.valid(loopback.now_s))
    loopback.speak(0, check_in(loopback, 0, **lie))
    assert (name_of(loopback), "malformed") in loopback.incidents()
    assert len(loopback.coordinator.leases.valid(loopback.now_s)) == leases
    others_commit(loopback)


def test_a_device_that_claims_a_version_that_never_was_is_counted_and_taken_along(
    tmp_path: Path,
) -> None:
    loopback = idle(tmp_path)
    spare = name_of(loopback)
    loopback.speak(0, check_in(loopback, 0, held_version=10**9))
    assert loopback.incidents()[spare, "unknown_version"] == 1
    assert spare in {lease.device for lease in loopback.coordinator.leases.valid(loopback.now_s)}


def test_a_device_that_asks_for_a_way_from_a_version_it_cannot_have_gets_the_whole_model(
    tmp_path: Path,
) -> None:
    loopback = collecting(tmp_path)
    for have in (1, 10**9, 2**53):
        download = loopback.coordinator.models.bundle(0, have)
        assert download is not None
        assert download.from_version == -1
    assert loopback.coordinator.models.bundle(10**9, 0) is None


LIES: dict[str, dict[str, object]] = {
    "another base version": {"base_version": 7},
    "another round": {"round": 7},
    "another's update id": {"update_id": update_id("toy", 1, "0" * 16)},
    "nobody's update id": {"update_id": bytes(16)},
}


@pytest.mark.parametrize("lie", LIES)
def test_an_offer_that_lies_leaves_no_line_and_no_partial(tmp_path: Path, lie: str) -> None:
    loopback = collecting(tmp_path)
    loopback.speak(0, offer(loopback, good_payload(), **LIES[lie]))
    assert loopback.coordinator.store.updates() == []
    assert loopback.coordinator.partials == 0
    assert [reason for device, reason in loopback.incidents() if device == name_of(loopback)]
    others_commit(loopback)


def test_chunks_that_are_not_what_the_offer_promised_are_not_an_update(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    payload = good_payload()
    message = offer(loopback, payload, payload_digest=hashlib.sha256(b"other").digest())
    loopback.speak(0, message)
    for index in range(-(-len(payload) // CHUNK)):
        loopback.speak(
            0, Chunk(message.update_id, index, payload[index * CHUNK : (index + 1) * CHUNK])
        )
    assert loopback.coordinator.store.updates() == []
    assert loopback.incidents()[name_of(loopback), "digest_mismatch"] == 1
    # It may still send what it has sealed.
    send(loopback, payload)
    assert loopback.coordinator.store.update(message.update_id) is not None


SAYS: dict[str, Callable[[], Message]] = {
    "a receipt": lambda: Receipt(bytes(16)),
    "a settlement": lambda: Settled(bytes(16), counted=True, reason="counted"),
    "an upload status": lambda: UploadStatus(bytes(16), b""),
}


@pytest.mark.parametrize("what", SAYS)
def test_a_device_that_speaks_as_a_coordinator_is_refused(tmp_path: Path, what: str) -> None:
    loopback = collecting(tmp_path)
    down = topics.parse(loopback.devices[0].subscriptions[0])
    loopback.inject(0, frames.seal(SAYS[what](), down, loopback.signers[0]))
    assert [reason for device, reason in loopback.incidents() if device == name_of(loopback)]
    others_commit(loopback)


def test_an_update_for_a_closed_round_is_settled_once_and_frees_its_device(tmp_path: Path) -> None:
    rounds = Rounds(count=1, cohort=3, over_select=1.3, quorum=0.5, deadline_s=30.0)
    loopback = Loopback(tmp_path, count=4, rounds=rounds)
    loopback.start()
    while not all(d.session.phase is Phase.TRAINING for d in loopback.devices):
        if not loopback.deliver():
            loopback.now_s += 2.5
            loopback.coordinator.wake(loopback.now_s)
    slow = loopback._works.pop(0)
    loopback.play()
    assert loopback.coordinator.finished
    driver, work = slow
    driver.work_done(work, work.run(), loopback.now_s)
    heard: list[Settled] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        message = frames.decode(frames.parse(data), topics.parse(topic))
        heard.extend([message] if isinstance(message, Settled) else [])
        return [data]

    loopback.tamper = listen
    while loopback.deliver():
        pass
    row = loopback.coordinator.store.update(update_id("toy", 1, driver.session.device))
    assert row is None or row.counted is False
    assert driver.session.sealed is None
    assert {(m.counted, m.reason) for m in heard} == {(False, "round_closed")}
