"""What is let go of, and that nothing else is."""

import random
from pathlib import Path

import msgspec
import pytest

from coordinator.config import Retention, Rounds
from coordinator.retention import INCIDENTS_MAX, ROWS_AT_ONCE, Keeper
from coordinator.signals import RoundInvited
from coordinator.store import ModelCommit, RoundTotals, Store
from tests.coordinator.test_store import commit, opened, stored
from tests.support.loopback import Loopback
from wire import frames, topics, update_id
from wire.messages import Settled, UpdateOffer

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

DAY = 86_400.0
LONG = Rounds(count=12, cohort=3, quorum=1.0, deadline_s=600.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state.sqlite3")


def hold(store: Store, rounds: int, at_s: float = 0.0) -> None:
    """Rounds of two updates each, one of which counted, an hour apart."""
    store.add_first_model(commit(0, round_number=0), at_s)
    for number in range(1, rounds + 1):
        store.open_round(opened(number))
        one, two = stored(1, number), stored(2, number)
        store.store_update(one, b"abc")
        store.store_update(two, b"abc")
        store.commit_round(
            commit(number, one, round_number=number), at_s + 3_600.0 * number, keep=frozenset()
        )


def keep_all_steps(store: Store, rules: Retention, latest: int, now_s: float) -> int:
    keeper, steps = Keeper(store), 0
    while keeper.step(rules, latest, now_s):
        steps += 1
        assert steps < 1_000
    return steps


def test_of_old_versions_the_row_stays_and_the_delta_goes(store: Store) -> None:
    hold(store, 30)
    keep_all_steps(store, Retention(versions=5), 30, 1e9)
    deltas = {v: row["delta"] for v in range(1, 31) if (row := store.model(v)) is not None}
    assert sorted(deltas) == list(range(1, 31))
    assert [v for v, delta in deltas.items() if delta] == [26, 27, 28, 29, 30]


def test_for_ever_is_the_default_and_keeps_every_line(store: Store) -> None:
    hold(store, 10)
    keep_all_steps(store, Retention(), 10, 1e9)
    assert len(store.updates()) == 20
    assert all(store.round_totals(number) is None for number in range(1, 11))


def test_old_lines_go_and_a_rounds_totals_stay(store: Store) -> None:
    hold(store, 48)
    now_s = 48 * 3_600.0
    keep_all_steps(store, Retention(ledger_days=1.0), 48, now_s)
    assert {row.round for row in store.updates()} == set(range(24, 49))
    totals = store.round_totals(3)
    assert totals is not None
    assert (totals.counted, totals.not_counted, totals.weight) == (1, 1, 1)
    assert totals.counts(stored(1, 3).update_id)
    assert not totals.counts(stored(2, 3).update_id)
    assert len(store.rounds()) == 48


def test_what_is_open_is_never_touched(store: Store) -> None:
    hold(store, 3)
    store.open_round(opened(4))
    store.store_update(stored(1, 4), b"abc")
    keep_all_steps(store, Retention(versions=1, ledger_days=0.001), 3, 1e9)
    assert stored(1, 4).update_id in {row.update_id for row in store.updates()}
    assert store.unfinished_round() == (opened(4), (stored(1, 4),))
    # The last rounds may still have to be told again.
    assert {row.round for row in store.updates()} >= {2, 3, 4}


def test_a_round_that_is_larger_than_a_step_goes_in_several(store: Store) -> None:
    many = ROWS_AT_ONCE + 7
    store.open_round(opened(1))
    rows = [
        msgspec.structs.replace(stored(1), update_id=n.to_bytes(16, "little")) for n in range(many)
    ]
    with store.transaction():
        for row in rows:
            store.store_update(row, b"x")
    accepted = tuple(row.update_id for row in rows)
    store.commit_round(
        ModelCommit(1, 1, bytes(32), b"d", b"s", b"e", accepted), 1.0, keep=frozenset()
    )
    for number in range(2, 6):
        store.open_round(opened(number))
        store.commit_round(commit(number, round_number=number), 2.0, keep=frozenset())
    steps = keep_all_steps(store, Retention(ledger_days=1.0), 5, 1e9)
    assert steps >= 2
    assert store.updates() == []
    totals = store.round_totals(1)
    assert totals is not None
    assert totals.counted == many


def test_incidents_are_bounded_and_the_smallest_go_first(store: Store) -> None:
    store.add_incidents({(f"d{n}", "malformed"): (n + 1, "") for n in range(INCIDENTS_MAX + 50)})
    keep_all_steps(store, Retention(), 0, 1.0)
    kept = store.incidents()
    assert len(kept) == INCIDENTS_MAX
    assert min(row["count"] for row in kept) == 51


def test_pages_that_are_free_are_given_back(store: Store) -> None:
    for number in range(200):
        store.put(f"k{number}", bytes(10_000))
    (before,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute("DELETE FROM meta")
    Keeper(store).step(Retention(), 0, 1.0)
    (after,) = store._db.execute("PRAGMA page_count").fetchone()
    assert after < before / 4


def test_a_device_that_is_further_behind_than_deltas_are_kept_gets_a_snapshot(
    tmp_path: Path,
) -> None:
    loopback = Loopback(tmp_path, count=3, rounds=LONG)
    loopback.config = msgspec.structs.replace(loopback.config, retention=Retention(versions=4))
    loopback.coordinator.store.close()
    loopback.boot_coordinator()
    loopback.start()
    loopback.play(until_s=5_000.0)
    models = loopback.coordinator.models
    assert models.version == 12
    assert [models._step(version) is None for version in (8, 9, 12)] == [True, False, False]
    far, near = models.bundle(12, 7), models.bundle(12, 11)
    assert far is not None
    assert near is not None
    assert (far.from_version, near.from_version) == (-1, 11)


def test_rounds_go_on_while_everything_is_let_go_of_and_a_restart_finds_its_way(
    tmp_path: Path,
) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=LONG, order=random.Random(4))
    rules = Retention(versions=1, ledger_days=1e-9)
    loopback.config = msgspec.structs.replace(loopback.config, retention=rules)
    loopback.coordinator.store.close()
    loopback.boot_coordinator()
    loopback.start()
    while loopback.coordinator.models.version < 6:
        if not loopback.deliver():
            loopback.now_s += 2.5
            loopback.coordinator.wake(loopback.now_s)
            for device in loopback.devices:
                device.wake(loopback.now_s)
    loopback.coordinator.store.close()
    loopback.boot_coordinator().start(loopback.now_s)
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play(until_s=5_000.0)
    store = loopback.coordinator.store
    assert loopback.coordinator.models.version == 12
    assert len({row.round for row in store.updates()}) <= 5
    assert sum(t.counted for n in range(1, 8) if (t := store.round_totals(n))) == 21


def test_an_update_whose_line_is_gone_is_settled_as_it_was(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=LONG)
    loopback.start()
    loopback.play(until_s=5_000.0)
    store = loopback.coordinator.store
    row = next(row for row in store.updates(1) if row.counted)
    keep_all_steps(store, Retention(ledger_days=1e-9), 12, loopback.now_s + 1e6)
    assert store.update(row.update_id) is None
    number = next(n for n in range(4) if loopback.devices[n].session.device == row.device)
    absent = (number + 1) % 4
    heard: list[Settled] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        message = frames.decode(frames.parse(data), topics.parse(topic))
        heard.extend([message] if isinstance(message, Settled) else [])
        return [data]

    loopback.tamper = listen
    for who, round_number in ((number, 1), (absent, 1)):
        key = update_id("toy", round_number, loopback.devices[who].session.device)
        loopback.speak(
            who,
            UpdateOffer(
                update_id=key,
                round=round_number,
                base_version=0,
                payload_bytes=10,
                payload_digest=bytes(32),
                chunk_bytes=1_024,
                num_examples=1,
                chunks_follow=False,
            ),
        )
    totals: RoundTotals | None = store.round_totals(1)
    assert totals is not None
    assert (heard[0].counted, heard[0].reason) == (True, "counted")
    assert heard[1].counted == totals.counts(heard[1].update_id)
    assert store.updates(1) == [], "no line is written again"


def test_what_a_later_round_has_collected_and_not_decided_stays(store: Store) -> None:
    store.add_first_model(commit(0, round_number=0), 0.0)
    early, late, refused = stored(1, 1), stored(2, 1), stored(3, 1)
    for number in range(1, 7):
        store.open_round(opened(number))
        if number == 1:
            store.store_update(early, b"abc")
        if number < 6:
            accepted = (early,) if number == 1 else ()
            store.commit_round(
                commit(number, *accepted, round_number=number), 10.0 * number, keep=frozenset()
            )
    store.store_update(msgspec.structs.replace(late, collected_in=6), b"abc")
    keep_all_steps(store, Retention(ledger_days=1.0), 6, 1e9)
    assert store.unfinished_round() == (
        opened(6),
        (msgspec.structs.replace(late, collected_in=6),),
    )
    store.commit_round(commit(6, late, round_number=6), 60.0, keep=frozenset())
    for number in range(7, 10):
        store.open_round(opened(number))
        store.commit_round(commit(number, round_number=number), 70.0, keep=frozenset())
    keep_all_steps(store, Retention(ledger_days=1.0), 9, 1e9)
    assert store.updates() == []
    totals = store.round_totals(1)
    assert totals is not None
    assert [totals.counts(u.update_id) for u in (early, late, refused)] == [True, True, False]


def test_invitations_and_reports_go_with_the_lines(store: Store) -> None:
    hold(store, 48)
    for number in (1, 2, 48):
        store.note_invited(RoundInvited(number, {"d1": 7}, 0.0, 60.0))
        store.add_evaluation(
            number, "d9", loss=1.0, accuracy=None, num_examples=1, now_s=3_600.0 * number
        )
    keep_all_steps(store, Retention(ledger_days=1.0), 48, 48 * 3_600.0)
    assert store.invitations(1, 48) == {48: 1}
    assert [len(store.evaluations(number)) for number in (1, 2, 48)] == [0, 0, 1]
