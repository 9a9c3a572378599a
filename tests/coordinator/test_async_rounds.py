"""Asynchronous rounds through the whole coordinator, with the real devices and a real store."""

import random
import sqlite3
from pathlib import Path

import msgspec
import pytest

from coordinator.config import Rounds
from coordinator.signals import FlightEnded, RoundInvited, RoundOpened, UpdateStored
from coordinator.store import Store
from coordinator.store._schema import MIGRATIONS
from edge_sdk.session import Phase
from fleet import StubCrypto
from quantization import SHARE_UNITS, Accumulator
from tests.support.loopback import Loopback
from wire import Plan, frames
from wire.messages import Settled

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

ROUNDS = Rounds(mode="async", count=4, cohort=3, quorum=0.5, over_select=1.5, deadline_s=60.0)


def loopback_of(directory: Path, *, count: int = 8, rounds: Rounds = ROUNDS) -> Loopback:
    return Loopback(directory, count=count, rounds=rounds, order=random.Random(3))


def begun(directory: Path, *, count: int = 8, rounds: Rounds = ROUNDS) -> Loopback:
    loopback = loopback_of(directory, count=count, rounds=rounds)
    loopback.start()
    return loopback


def until_invited(loopback: Loopback) -> None:
    """Deliver and let time pass until the first buffer has somebody in flight."""
    while not loopback.coordinator.rounds.round.flights:
        if not loopback.deliver():
            loopback.now_s += 0.1
            loopback.coordinator.wake(loopback.now_s)


@pytest.mark.parametrize("seed", range(4))
def test_every_round_commits_and_what_counts_is_settled_once(tmp_path: Path, seed: int) -> None:
    loopback = Loopback(tmp_path, count=8, rounds=ROUNDS, order=random.Random(seed))
    loopback.start()
    loopback.play()
    store = loopback.coordinator.store
    assert [row["status"] for row in store.rounds()] == ["committed"] * 4
    rows = store.updates()
    counted = [row for row in rows if row.counted]
    assert len({(row.round, row.device) for row in counted}) == len(counted)
    assert {row.collected_in for row in counted} == {1, 2, 3, 4}
    assert all(row.counted is not None for row in rows if row.receipted_at is not None)
    for number in range(1, 5):
        assert 2 <= sum(row.collected_in == number for row in counted) <= 3


def test_rounds_end_with_a_released_model_on_every_device(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=8, rounds=ROUNDS)
    loopback.start()
    loopback.play()
    assert {device.released.version for device in loopback.devices} == {4}


def test_a_device_is_invited_as_soon_as_it_is_there_and_no_more_than_may_be(
    tmp_path: Path,
) -> None:
    loopback = begun(tmp_path, count=12)
    until_invited(loopback)
    most = 0
    while not loopback.coordinator.finished:
        if not loopback.deliver():
            loopback.now_s += 0.5
            loopback.coordinator.wake(loopback.now_s)
            for device in loopback.devices:
                device.wake(loopback.now_s)
        most = max(most, len(loopback.coordinator.rounds.round.flights))
    assert most == ROUNDS.to_invite == 5


def test_the_same_updates_at_the_same_staleness_make_the_same_model(tmp_path: Path) -> None:
    schema = loopback_of(tmp_path).coordinator.models.schema
    chance = random.Random(1)
    updates = [
        (chance.randint(1, 99), 1.0 / (1 + chance.randint(0, 9)) ** 0.5, number)
        for number in range(20)
    ]
    sums = []
    for _ in range(2):
        total = Accumulator(schema, weight_cap=100, updates_max=20)
        for weight, factor, number in updates:
            total.add(payload_of(number), weight, share=round(factor * SHARE_UNITS))
        sums.append({name: t.tobytes() for name, t in total.finish()[0].items()})
        chance.shuffle(updates)
    assert sums[0] == sums[1]


def payload_of(number: int) -> bytes:
    from fleet.toy import ToyTask  # noqa: PLC0415 - only here
    from quantization import encode  # noqa: PLC0415 - only here

    schema = ToyTask().model().schema
    tensors = {name: t + 0.01 * number for name, t in schema.zeros().items()}
    return encode("raw", tensors, schema, seed=number)


def test_a_coordinator_that_died_between_any_two_packets_settles_what_it_receipted(
    tmp_path: Path,
) -> None:
    for stop_after in range(0, 70, 14):
        directory = tmp_path / str(stop_after)
        directory.mkdir()
        loopback = begun(directory, count=6)
        for _ in range(stop_after):
            loopback.deliver()
        before = {row.update_id: row for row in loopback.coordinator.store.updates()}
        loopback.coordinator.store.close()  # nothing is flushed: that is the crash
        loopback.boot_coordinator().start(loopback.now_s)
        loopback.coordinator.on_link_up(131_072, loopback.now_s)
        loopback.play(until_s=2_000.0)
        assert loopback.coordinator.finished
        after = {row.update_id: row for row in loopback.coordinator.store.updates()}
        for key, row in before.items():
            if row.receipted_at is not None:
                assert after[key].counted is not None
                assert after[key].receipted_at == row.receipted_at
                assert after[key].collected_in == row.collected_in
        assert loopback.coordinator.models.version == 4
        loopback.coordinator.store.close()


def test_after_a_restart_the_same_devices_are_in_flight(tmp_path: Path) -> None:
    loopback = begun(tmp_path)
    until_invited(loopback)
    before = loopback.coordinator.rounds.round
    loopback.coordinator.store.close()
    loopback.boot_coordinator().start(loopback.now_s)
    after = loopback.coordinator.rounds.round
    assert after.flights == before.flights
    assert after.opened == before.opened


def held_back(directory: Path, staleness_max: int) -> tuple[Loopback, str, list[Settled]]:
    """One device trains for three whole rounds; it is told what becomes of that."""
    rounds = Rounds(
        mode="async",
        count=6,
        cohort=2,
        quorum=1.0,
        deadline_s=500.0,
        staleness_max=staleness_max,
    )
    loopback = Loopback(directory, count=6, rounds=rounds)
    loopback.start()
    until_invited(loopback)
    while not any(device.session.phase is Phase.TRAINING for device in loopback.devices):
        assert loopback.deliver()
    at = next(n for n, d in enumerate(loopback.devices) if d.session.phase is Phase.TRAINING)
    slow = loopback.devices[at]
    told: list[Settled] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        if topic in slow.subscriptions:
            message = frames.open_frame(
                data,
                loopback.address(at).__class__("toy", slow.session.device, "down"),
                loopback.coordinator.public_key,
                StubCrypto(),
            )
            told.extend([message] if isinstance(message, Settled) else [])
        return [data]

    loopback.tamper = listen
    works = [work for work in loopback._works if work[0] is slow]
    loopback._works = [work for work in loopback._works if work[0] is not slow]
    while loopback.coordinator.models.version < 3:
        if not loopback.deliver():
            loopback.now_s += 1.0
            loopback.coordinator.wake(loopback.now_s)
            for device in loopback.devices:
                device.wake(loopback.now_s)
    loopback._works += works
    loopback.play()
    return loopback, slow.session.device, told


def test_late_work_counts_where_it_is_collected_and_keeps_the_round_it_was_asked_for(
    tmp_path: Path,
) -> None:
    loopback, device, told = held_back(tmp_path, staleness_max=10)
    (row,) = [
        r for r in loopback.coordinator.store.updates() if r.device == device and r.round == 1
    ]
    assert row.counted
    assert row.base_version == 0
    assert row.collected_in >= 4
    assert [message.reason for message in told][:1] == ["counted"]


def test_work_that_is_too_stale_is_settled_and_not_counted(tmp_path: Path) -> None:
    loopback, device, told = held_back(tmp_path, staleness_max=2)
    (row,) = [
        r for r in loopback.coordinator.store.updates() if r.device == device and r.round == 1
    ]
    assert (row.counted, row.reason, row.receipted_at) == (False, "too_stale", None)
    assert [message.reason for message in told][:1] == ["too_stale"]
    assert loopback.coordinator.finished


def test_a_buffer_whose_devices_all_fail_asks_them_again_when_their_time_is_over(
    tmp_path: Path,
) -> None:
    loopback = begun(tmp_path, count=4)
    until_invited(loopback)
    invited = set(loopback.coordinator.rounds.round.flights)
    for device in sorted(invited):
        loopback.coordinator.rounds.lose(device, "battery_low", loopback.now_s)
    assert loopback.coordinator.rounds.round.flights == {}
    assert loopback.coordinator.store.flights(loopback.now_s) == {}
    loopback.play(until_s=2_000.0)
    assert loopback.coordinator.finished


def test_a_file_that_changes_its_mode_does_so_at_a_rounds_edge(tmp_path: Path) -> None:
    loopback = begun(tmp_path)
    until_invited(loopback)
    loopback.coordinator.store.close()
    whole = loopback.config
    loopback.config = type(whole)(
        federation=whole.federation, rounds=Rounds(count=3, cohort=3, quorum=0.5, deadline_s=60.0)
    )
    loopback.boot_coordinator().start(loopback.now_s)
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play(until_s=2_000.0)
    assert loopback.coordinator.finished
    opened = [loopback.coordinator.store.round_opened(n) for n in (1, 2, 3)]
    assert [record.mode for record in opened if record] == ["async", "sync", "sync"]


# -- the store -------------------------------------------------------------------------------------


def stored(device: str, round_number: int, collected_in: int) -> UpdateStored:
    return UpdateStored(
        update_id=f"{device}/{round_number}".encode().ljust(16),
        device=device,
        round=round_number,
        base_version=0,
        num_examples=1,
        weight=1,
        payload_bytes=3,
        payload_digest=bytes(32),
        metrics={},
        receipted_at_s=20.0,
        collected_in=collected_in,
    )


def test_flights_are_those_that_can_still_come_to_something(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    everybody = {"done": 1, "gone": 2, "late": 3, "works": 4}
    store.note_invited(RoundInvited(1, {"late": 3}, 5.0, 10.0))
    store.note_invited(RoundInvited(1, {n: everybody[n] for n in ("done", "gone")}, 10.0, 70.0))
    store.note_invited(RoundInvited(2, {"works": 4}, 20.0, 80.0))
    store.end_flight(FlightEnded(1, "gone", "battery_low"))
    store.store_update(stored("done", 1, 2), b"abc")
    assert set(store.flights(30.0)) == {"works"}
    store.note_invited(RoundInvited(2, {"gone": 9}, 40.0, 100.0))
    assert {name: f.round for name, f in store.flights(50.0).items()} == {"works": 2, "gone": 2}
    assert store.invited_at(2) == {"works": 20.0, "gone": 40.0}
    assert store.devices_heard(1) == {"done"}
    assert [row.device for row in store.updates(2)] == ["done"]
    store.close()


def test_a_file_of_the_first_schema_has_its_updates_where_they_were_collected(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    old = sqlite3.connect(path)
    old.executescript(MIGRATIONS[0])
    old.execute(
        "INSERT INTO updates VALUES (?, 'd1', 3, 2, 10, 10, 3, ?, ?, 1.0, NULL, NULL, NULL)",
        (b"u" * 16, bytes(32), msgspec.msgpack.encode({})),
    )
    record = RoundOpened(3, 2, bytes(32), Plan(), "raw", 3, 2, {"d1": 7}, 0.0, 60.0, 1_000, 1_000)
    fields = {name: getattr(record, name) for name in record.__struct_fields__[:12]}
    old.execute(
        "INSERT INTO rounds (round, record, opened_at) VALUES (3, ?, 0.0)",
        (msgspec.msgpack.encode(fields),),
    )
    old.execute("PRAGMA user_version=1")
    old.commit()
    old.close()
    store = Store(path)
    assert store.unfinished_round() is not None
    opened, (update,) = store.unfinished_round() or (record, ())
    assert (opened, update.collected_in) == (record, 3)
    store.close()
