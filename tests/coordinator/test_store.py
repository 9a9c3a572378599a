import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.signals import RoundAbandoned, RoundOpened, UpdateSettled, UpdateStored
from coordinator.store import ModelCommit, Store, StoreError
from coordinator.store._schema import SCHEMA_VERSION
from wire import Plan
from wire.errors import TokenError

KEY = bytes(range(32))
OTHER_KEY = bytes(range(32, 64))
DIGEST = bytes(32)
NONE_KEPT: frozenset[int] = frozenset()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.sqlite3")
    yield made
    made.close()


def opened(round_number: int = 1) -> RoundOpened:
    return RoundOpened(
        round=round_number,
        base_version=0,
        base_digest=DIGEST,
        plan=Plan(),
        codec="q8",
        cohort=2,
        needed=1,
        invited={"d1": 5, "d2": 6},
        opened_at_s=10.0,
        deadline_at_s=70.0,
        chunk_bytes_max=1_000,
        weight_cap=1_000,
    )


def stored(number: int, round_number: int = 1) -> UpdateStored:
    return UpdateStored(
        update_id=bytes([round_number, number]) * 8,
        device=f"d{number}",
        round=round_number,
        base_version=0,
        num_examples=10 * number,
        weight=number,
        payload_bytes=3,
        payload_digest=DIGEST,
        metrics={"loss": 0.5},
        receipted_at_s=20.0,
        collected_in=round_number,
    )


def commit(version: int, *accepted: UpdateStored, round_number: int = 1) -> ModelCommit:
    return ModelCommit(
        round=round_number,
        version=version,
        digest=DIGEST,
        delta=b"delta",
        served=b"served",
        exact=b"exact",
        accepted=tuple(update.update_id for update in accepted),
    )


def reopened(store: Store) -> Store:
    """What a new process finds: the old one let go of nothing."""
    return Store(store.path)


def verdicts(store: Store) -> dict[str, tuple[bool | None, str | None]]:
    return {row.device: (row.counted, row.reason) for row in store.updates()}


def test_everything_is_there_after_reopening_without_a_close(store: Store) -> None:
    store.put("k", b"v")
    store.add_first_model(commit(0, round_number=0), 1.0)
    store.open_round(opened())
    store.store_update(stored(1), b"abc")
    with contextlib.closing(reopened(store)) as again:
        assert again.get("k") == b"v"
        assert again.latest_version() == 0
        assert again.round_opened(1) == opened()
        assert again.unfinished_round() == (opened(), (stored(1),))
        assert again.payload(stored(1).update_id) == b"abc"


def test_an_empty_store_knows_of_nothing(store: Store) -> None:
    assert store.get("k") is None
    assert store.latest_version() is None
    assert store.last_round() == 0
    assert store.unfinished_round() is None
    assert store.round_opened(1) is None
    assert store.update(bytes(16)) is None
    assert store.tensors(0) is None
    assert store.model(0) is None
    assert store.released("stable") is None
    assert store.declines(1) == {}
    assert (store.rounds(), store.updates(), store.incidents(), store.privacy()) == ([], [], [], [])


def test_an_update_and_its_payload_appear_together_or_not_at_all(store: Store) -> None:
    store.open_round(opened())
    store.store_update(stored(1), b"abc")
    with pytest.raises(sqlite3.IntegrityError):
        store.store_update(stored(1), b"forged")
    assert store.payload(stored(1).update_id) == b"abc"
    assert [row.device for row in store.updates()] == ["d1"]
    with pytest.raises(StoreError, match="lost"):
        store.payload(stored(2).update_id)


def test_a_settled_update_cannot_be_settled_again(store: Store) -> None:
    store.open_round(opened())
    store.store_update(stored(1), b"abc")
    store.settle(UpdateSettled(stored(1).update_id, 1, "not_finite", 30.0))
    first = store.update(stored(1).update_id)
    store.settle(UpdateSettled(stored(1).update_id, 1, "other", 99.0))
    store.commit_round(commit(1, stored(1)), 100.0, keep=NONE_KEPT)
    assert store.update(stored(1).update_id) == first
    assert first is not None
    assert (first.counted, first.reason, first.settled_at) == (False, "not_finite", 30.0)


def test_a_commit_settles_everything_of_its_round_and_empties_the_spool(store: Store) -> None:
    store.add_first_model(commit(0, round_number=0), 1.0)
    store.open_round(opened())
    for number in (1, 2, 3):
        store.store_update(stored(number), b"abc")
    store.settle(UpdateSettled(stored(3).update_id, 1, "not_finite", 30.0))
    store.commit_round(commit(1, stored(1)), 40.0, keep=NONE_KEPT)
    assert verdicts(store) == {
        "d1": (True, "counted"),
        "d2": (False, "round_closed"),
        "d3": (False, "not_finite"),
    }
    for number in (1, 2, 3):
        with pytest.raises(StoreError):
            store.payload(stored(number).update_id)
    assert store.unfinished_round() is None
    assert store.latest_version() == 1
    assert store.update_metrics(1) == [(10, {"loss": 0.5})]
    (row,) = store.rounds()
    assert (row["status"], row["version"], row["closed_at"]) == ("committed", 1, 40.0)


def test_a_commit_that_fails_at_its_last_statement_changes_nothing(store: Store) -> None:
    store.add_first_model(commit(0, round_number=0), 1.0)
    store.open_round(opened())
    store.store_update(stored(1), b"abc")
    with pytest.raises(sqlite3.IntegrityError):
        # The version exists already: the settlements before it must go back too.
        store.commit_round(commit(0, stored(1)), 40.0, keep=NONE_KEPT)
    assert verdicts(store) == {"d1": (None, None)}
    assert store.payload(stored(1).update_id) == b"abc"
    assert store.unfinished_round() == (opened(), (stored(1),))
    store.commit_round(commit(1, stored(1)), 41.0, keep=NONE_KEPT)
    assert verdicts(store) == {"d1": (True, "counted")}


def test_an_abandoned_round_counts_nothing_and_makes_no_version(store: Store) -> None:
    store.add_first_model(commit(0, round_number=0), 1.0)
    store.open_round(opened())
    store.store_update(stored(1), b"abc")
    accepted = (stored(1).update_id,)
    store.abandon_round(RoundAbandoned(1, accepted, "deadline_passed", 70.0))
    assert verdicts(store) == {"d1": (False, "round_abandoned")}
    assert store.latest_version() == 0
    assert store.unfinished_round() is None
    assert store.last_round() == 1
    assert store.rounds()[0]["reason"] == "deadline_passed"
    with pytest.raises(StoreError):
        store.payload(stored(1).update_id)


def test_closing_one_round_leaves_another_rounds_updates_alone(store: Store) -> None:
    store.open_round(opened(1))
    store.store_update(stored(1, 1), b"abc")
    store.abandon_round(RoundAbandoned(1, (), "deadline_passed", 70.0))
    store.open_round(opened(2))
    store.store_update(stored(1, 2), b"abc")
    store.abandon_round(RoundAbandoned(1, (), "deadline_passed", 71.0))
    assert store.unfinished_round() == (opened(2), (stored(1, 2),))
    assert [row.round for row in store.updates(2)] == [2]


def test_a_refused_update_is_settled_without_a_receipt_and_cannot_be_stored(store: Store) -> None:
    store.open_round(opened())
    store.refuse_update(stored(1), "too_large", 30.0)
    row = store.update(stored(1).update_id)
    assert row is not None
    assert (row.receipted_at, row.settled_at, row.counted) == (None, 30.0, False)
    assert (row.reason, row.weight) == ("too_large", 0)
    with pytest.raises(sqlite3.IntegrityError):
        store.store_update(stored(1), b"abc")
    assert store.unfinished_round() == (opened(), ())


def test_refusing_what_is_stored_already_changes_nothing(store: Store) -> None:
    store.open_round(opened())
    store.store_update(stored(1), b"abc")
    before = store.update(stored(1).update_id)
    store.refuse_update(stored(1), "too_large", 30.0)
    assert store.update(stored(1).update_id) == before


def test_a_round_number_is_used_once(store: Store) -> None:
    store.open_round(opened())
    with pytest.raises(sqlite3.IntegrityError):
        store.open_round(opened())


def test_only_kept_versions_keep_their_tensors_and_every_version_its_delta(store: Store) -> None:
    store.add_first_model(commit(0, round_number=0), 1.0)
    for number in (1, 2, 3):
        store.open_round(opened(number))
        store.commit_round(commit(number, round_number=number), 2.0, keep=frozenset({1}))
    assert [store.tensors(version) is not None for version in range(4)] == [
        False,
        True,
        False,
        True,
    ]
    assert [store.model(version) is not None for version in range(4)] == [True] * 4
    assert store.tensors(3) == (b"served", b"exact")


def test_an_alias_means_its_last_release_and_history_is_kept(store: Store) -> None:
    for version in (1, 2, 1):
        store.release("stable", version, DIGEST, float(version))
    store.release("candidate", 3, DIGEST, 9.0)
    now = store.released("stable")
    assert now is not None
    assert now["version"] == 1
    assert [row.version for row in store.releases()] == [1, 2, 1, 3]


def test_a_token_works_for_one_key_and_until_it_expires(store: Store) -> None:
    store.add_tokens({"t1": b"s1", "t2": b"s2"}, 100.0)
    assert store.token_secret("t1", KEY, 100.0) == b"s1"
    store.redeem("t1", "d1", KEY, "pi-5", 100.0)
    assert store.token_secret("t1", KEY, 1e9) == b"s1"
    for token_id, key, why in (
        ("t1", OTHER_KEY, "used"),
        ("t2", KEY, "expired"),
        ("t3", KEY, "unknown"),
    ):
        with pytest.raises(TokenError, match=why):
            store.token_secret(token_id, key, 101.0)


def test_enrolling_again_does_not_undo_a_revocation(store: Store) -> None:
    store.admit("d1", KEY, "pi-5", 1.0)
    store.note_check_ins({"d1": 77, "nobody": 1})
    store.revoke("d1", "owner_left")
    store.admit("d1", OTHER_KEY, "phone-low", 2.0)
    row = store.devices()["d1"]
    assert (row["revoked"], row["public_key"], row["last_check_in"]) == ("owner_left", KEY, 77)
    assert set(store.devices()) == {"d1"}


def test_a_token_id_that_exists_leaves_none_of_the_new_ones(store: Store) -> None:
    store.add_tokens({"t1": b"s1"}, 100.0)
    with pytest.raises(sqlite3.IntegrityError):
        store.add_tokens({"t0": b"s0", "t1": b"other"}, 100.0)
    with pytest.raises(TokenError, match="unknown"):
        store.token_secret("t0", KEY, 1.0)


def test_incidents_add_up(store: Store) -> None:
    store.add_incidents({("d1", "too_large"): (2, "first"), ("d2", "malformed"): (1, "x")})
    store.add_incidents({("d1", "too_large"): (3, "last")})
    assert [(r["device"], r["count"], r["last_detail"]) for r in store.incidents()] == [
        ("d1", 5, "last"),
        ("d2", 1, "x"),
    ]


def test_notes_on_a_round_are_kept(store: Store) -> None:
    store.open_round(opened())
    store.note_declines(1, {"d1": "battery_low"})
    store.note_round(1, {"accuracy": 0.9})
    store.note_traffic(1, 10, 20)
    assert store.declines(1) == {"d1": "battery_low"}
    (row,) = store.rounds()
    assert row["metrics"] is not None
    assert row["traffic"] is not None


def test_a_store_of_a_newer_potluck_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    for read_only in (False, True):
        with pytest.raises(StoreError, match="newer potluck"):
            Store(path, read_only=read_only)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)


def test_a_file_that_is_no_store_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    path.write_bytes(b"this is a text file, and a rather long one" * 30)
    with pytest.raises(StoreError, match=r"state\.sqlite3"):
        Store(path)
    with pytest.raises(StoreError):
        Store(tmp_path / "absent" / "state.sqlite3")


def test_a_reader_cannot_write_and_makes_no_store(store: Store, tmp_path: Path) -> None:
    with contextlib.closing(Store(store.path, read_only=True)) as reader:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.put("k", b"v")
        store.put("k", b"v")
        assert reader.get("k") == b"v"
    with pytest.raises(StoreError):
        Store(tmp_path / "absent.sqlite3", read_only=True)
    assert not (tmp_path / "absent.sqlite3").exists()


def test_a_versions_parent_is_the_one_before_it_however_far_its_number_is(store: Store) -> None:
    store.add_first_model(commit(0, round_number=0), 1.0)
    for number in (1, 7_000_001, 7_000_002):
        store.open_round(opened(number))
        store.commit_round(commit(number, round_number=number), 2.0, keep=NONE_KEPT)
    assert [row.parent for row in store.versions()] == [None, 0, 1, 7_000_001]
