"""Frames that come together: one transaction, the same decisions, nothing said too early."""

import hashlib
import random
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.config import Rounds
from coordinator.round import Phase
from coordinator.signals import UpdateSettled
from coordinator.store import DiskFullError, Store
from coordinator.store._ledger import LedgerTables
from coordinator.timers import DISK_AGAIN_S
from tests.support.loopback import Loopback
from wire import update_id
from wire.errors import NotFiniteError
from wire.messages import Chunk, UpdateOffer

KIND_AT = 4
ROUNDS = Rounds(count=3, cohort=4, quorum=1.0, deadline_s=60.0)


def play_in_bursts(loopback: Loopback, size: int, most: int = 5_000) -> None:
    """As `Loopback.play`, with up to `size` packets at a time."""
    coordinator = loopback.coordinator
    for _ in range(most):
        with coordinator.burst(lambda: loopback.now_s):
            said = [loopback.deliver() for _ in range(size)]
        if any(said):
            continue
        if coordinator.finished:
            return
        loopback.now_s = max(loopback.now_s, loopback._next_wake_s(loopback.now_s + 1.0))
        coordinator.wake(loopback.now_s)
        for device in loopback.devices:
            device.wake(loopback.now_s)
    raise AssertionError("the rounds did not end")


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_model_is_the_same_however_frames_are_put_together(tmp_path: Path, size: int) -> None:
    alone = Loopback(tmp_path / "alone", count=6, rounds=ROUNDS)
    alone.start()
    alone.play()
    together = Loopback(tmp_path / "together", count=6, rounds=ROUNDS, order=random.Random(size))
    together.start()
    play_in_bursts(together, size)
    assert together.coordinator.models.digest == alone.coordinator.models.digest
    rows = together.coordinator.store.updates()
    assert all(row.counted for row in rows)
    assert len(rows) == 12


def sealed(directory: Path) -> Loopback:
    """Everybody has trained, and no coordinator has heard a chunk of it."""
    loopback = Loopback(directory, count=4, rounds=ROUNDS)
    loopback.start()
    held: list[tuple[str, bytes]] = []

    def hold_chunks(topic: str, data: bytes) -> list[bytes]:
        if data[KIND_AT] != Chunk.KIND:
            return [data]
        held.append((topic, data))
        return []

    loopback.tamper = hold_chunks
    while loopback.deliver():
        pass
    while not held:
        loopback.now_s += 0.05
        loopback.coordinator.wake(loopback.now_s)
        while loopback.deliver():
            pass
    loopback._wire += held
    return loopback


def test_a_cohort_that_answers_together_is_one_transaction(tmp_path: Path) -> None:
    loopback = sealed(tmp_path)
    store, before = loopback.coordinator.store, len(loopback._wire)
    assert before >= 4
    seen: list[str] = []
    store._db.set_trace_callback(seen.append)
    with loopback.coordinator.burst(lambda: loopback.now_s):
        for _ in range(before):
            loopback.deliver()
        assert store.updates() == [], "nothing is done before the frames were looked at"
        assert len(loopback._wire) == 0, "and nothing is said"
    store._db.set_trace_callback(None)
    inserts = [at for at, sql in enumerate(seen) if sql.startswith("INSERT INTO updates")]
    commits = [at for at, sql in enumerate(seen) if sql == "COMMIT"]
    assert len(inserts) == 4
    assert not any(inserts[0] < at < inserts[-1] for at in commits)
    assert all(row.counted for row in store.updates())


def test_a_crash_between_the_transaction_and_what_follows_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback = sealed(tmp_path)
    coordinator = loopback.coordinator

    def crash(*_: object) -> None:
        raise RuntimeError("the power is gone")

    monkeypatch.setattr(coordinator.rounds, "take", crash)

    def answer_together() -> None:
        with coordinator.burst(lambda: loopback.now_s):
            for _ in range(len(loopback._wire)):
                loopback.deliver()

    with pytest.raises(RuntimeError, match="power"):
        answer_together()
    receipted = coordinator.store.updates()
    assert len(receipted) == 4
    coordinator.store.close()
    loopback.tamper = lambda _topic, data: [data]
    loopback.boot_coordinator().start(loopback.now_s)
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play()
    after = {row.update_id: row for row in loopback.coordinator.store.updates()}
    assert loopback.coordinator.models.version == 3
    assert len(after) == 12
    for row in receipted:
        assert after[row.update_id].counted
        assert after[row.update_id].receipted_at == row.receipted_at


def test_when_they_cannot_be_written_together_each_is_written_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback = sealed(tmp_path)
    store_update = LedgerTables.store_update
    depth: list[int] = []

    def refuses_groups(self: Store, *arguments: object) -> None:
        if self._in_transaction() and not depth:
            depth.append(1)
            raise sqlite3.OperationalError("disk I/O error")
        store_update(self, *arguments)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(LedgerTables, "store_update", refuses_groups)
    with loopback.coordinator.burst(lambda: loopback.now_s):
        for _ in range(len(loopback._wire)):
            loopback.deliver()
    assert depth
    assert [row.counted for row in loopback.coordinator.store.updates()] == [True] * 4


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_chunks_of_an_offer_that_another_offer_has_undone_end_nothing(
    tmp_path: Path, mode: str
) -> None:
    rounds = Rounds(mode=mode, count=3, cohort=4, quorum=0.5)  # type: ignore[arg-type] # one of two words
    loopback = Loopback(tmp_path, count=4, rounds=rounds)
    loopback.start()
    conductor = loopback.coordinator.rounds
    while not (conductor.round.waiting_for or conductor.round.flights):
        if not loopback.deliver():
            loopback.now_s += 2.5
            loopback.coordinator.wake(loopback.now_s)
    name = min(conductor.round.waiting_for | conductor.round.flights.keys())
    number = next(n for n in range(4) if loopback.devices[n].session.device == name)
    key, data = update_id("toy", 1, name), b"0123456789"
    offer = UpdateOffer(
        update_id=key,
        round=1,
        base_version=0,
        payload_bytes=len(data),
        payload_digest=hashlib.sha256(data).digest(),
        chunk_bytes=1_024,
        num_examples=1,
        chunks_follow=True,
    )
    loopback.speak(number, offer)
    loopback.speak(number, msgspec.structs.replace(offer, payload_bytes=2**28))
    with loopback.coordinator.burst(lambda: loopback.now_s):
        loopback.speak(number, Chunk(key, 0, data))
    row = loopback.coordinator.store.update(key)
    assert row is not None
    assert (row.receipted_at, row.counted, row.reason) == (None, False, "too_large")
    assert key not in conductor.round.updates


def test_updates_written_together_reach_a_round_that_waits_for_room(tmp_path: Path) -> None:
    """The first is refused and its settlement finds no room; the others are on disk already."""
    loopback = sealed(tmp_path)
    rounds, store = loopback.coordinator.rounds, loopback.coordinator.store
    aggregation = rounds.current.aggregation
    assert aggregation is not None
    accept, settle = aggregation.accept, store.settle
    seen: list[bytes] = []
    full = [True]

    def accept_but_the_first(update_id: bytes, *more: Any, **how: Any) -> None:
        seen.append(update_id)
        if len(seen) == 1:
            raise NotFiniteError("nan")
        accept(update_id, *more, **how)

    def settle_when_there_is_room(settled: UpdateSettled) -> None:
        if full:
            full.clear()
            raise DiskFullError("full")
        settle(settled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "accept", accept_but_the_first)
        patch.setattr(store, "settle", settle_when_there_is_room)
        with loopback.coordinator.burst(lambda: loopback.now_s):
            while loopback.deliver():
                pass
        loopback.now_s += DISK_AGAIN_S
        loopback.coordinator.wake(loopback.now_s)
        while loopback.deliver():
            pass
    # Quorum is 1: the round ends at once, and nobody waits for its deadline.
    assert rounds.round.phase is Phase.ABANDONED
    assert all(row.settled_at is not None for row in store.updates(1))
    assert not rounds.current.kept
