import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import Rounds
from coordinator.models import SCHEMA, tensors_to_bytes
from coordinator.registry import RELEASES_KEPT, Registry, RegistryError, standing
from coordinator.store import ModelCommit, ReleaseRow, Store
from coordinator.store._schema import MIGRATIONS
from tests.support.loopback import Loopback
from wire import Schema, npz, tensors_digest
from wire.manifest import TensorSpec

import msgspec  # isort: skip

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

SHAPE = Schema((TensorSpec("layer.weight", (3, 2)), TensorSpec("layer.bias", (2,))))
ROUNDS = Rounds(count=4, cohort=2, quorum=1.0, deadline_s=60.0)


def tensors(version: int) -> dict[str, np.ndarray]:
    return {spec.name: np.full(spec.shape, version + 0.5, np.float32) for spec in SHAPE.tensors}


def commit(version: int) -> ModelCommit:
    data = tensors_to_bytes(SHAPE, tensors(version))
    return ModelCommit(
        round=version,
        version=version,
        digest=bytes.fromhex(tensors_digest(SHAPE, tensors(version))),
        delta=b"delta" * version,
        served=data,
        exact=data,
        accepted=(),
    )


class Shelf:
    """A store with versions, and its registry."""

    def __init__(self, directory: Path, versions: int = 4) -> None:
        self.store = Store(directory / "state.sqlite3")
        self.directory = directory / "models"
        self.registry = Registry(self.store, self.directory)
        self.store.put(SCHEMA, msgspec.msgpack.encode(SHAPE))
        for version in range(versions):
            self.store.add_first_model(commit(version), float(version))

    def promote(self, *versions: int) -> None:
        for version in versions:
            self.registry.promote(version, now_s=1.0)

    def stable(self) -> int:
        return self.registry.aliases()["stable"]

    def file(self, version: int) -> Path:
        return self.directory / "sha256" / f"{commit(version).digest.hex()}.npz"


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    made.store.close()


# -- aliases -------------------------------------------------------------------------------------


def test_an_alias_that_was_never_promoted_means_nothing(shelf: Shelf) -> None:
    assert shelf.registry.aliases() == {}
    with pytest.raises(RegistryError, match="nothing was ever promoted"):
        shelf.registry.rollback(now_s=1.0)


def test_repeated_rollbacks_walk_further_back_and_history_keeps_everything(shelf: Shelf) -> None:
    shelf.promote(1, 3, 2)
    assert [shelf.registry.rollback(now_s=2.0).release.version for _ in range(2)] == [3, 1]
    with pytest.raises(RegistryError, match="version 1 is the first"):
        shelf.registry.rollback(now_s=2.0)
    assert [(row.version, row.action, row.from_version) for row in shelf.store.releases()] == [
        (1, "promote", None),
        (3, "promote", 1),
        (2, "promote", 3),
        (3, "rollback", 2),
        (1, "rollback", 3),
    ]


def test_a_promotion_after_a_rollback_goes_back_to_where_the_rollback_led(shelf: Shelf) -> None:
    shelf.promote(1, 2)
    shelf.registry.rollback(now_s=2.0)
    shelf.promote(3)
    assert shelf.registry.rollback(now_s=3.0).release.version == 1


def test_promoting_what_an_alias_means_already_adds_no_line(shelf: Shelf) -> None:
    assert shelf.registry.promote(1, now_s=1.0).changed
    again = shelf.registry.promote(1, now_s=2.0)
    assert (again.changed, again.release.released_at) == (False, 1.0)
    assert len(shelf.store.releases()) == 1


def test_aliases_move_on_their_own(shelf: Shelf) -> None:
    shelf.promote(1, 2)
    shelf.registry.promote(3, "candidate", actor="http", now_s=1.0)
    shelf.registry.rollback(now_s=2.0)
    assert shelf.registry.aliases() == {"stable": 1, "candidate": 3}
    assert [row.actor for row in shelf.registry.history("candidate")] == ["http"]


def test_a_version_that_does_not_exist_is_one_line(shelf: Shelf) -> None:
    with pytest.raises(RegistryError, match="version 9: no such version; the latest is 3"):
        shelf.registry.promote(9, now_s=1.0)


@given(st.lists(st.one_of(st.integers(0, 5), st.none()), max_size=30))
def test_standing_is_an_undo_stack(moves: list[int | None]) -> None:
    """Against a model that keeps a list: a number is promoted, None rolls back where it can."""
    history: list[ReleaseRow] = []
    expected: list[int] = []
    for number, version in enumerate(moves, 1):
        if version is None and len(expected) < 2:
            continue
        if version is None:
            expected.pop()
        elif expected and expected[-1] == version:
            continue
        else:
            expected.append(version)
        action = "rollback" if version is None else "promote"
        history.append(
            ReleaseRow(number, "stable", expected[-1], b"", 0.0, "operator", action, None)
        )
        assert standing(history) == expected


# -- what is kept --------------------------------------------------------------------------------


def test_what_an_alias_can_be_rolled_back_to_is_needed(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, versions=12)
    shelf.promote(*range(1, 10))
    needed = shelf.registry.needed_versions()
    assert needed == {11, *range(9 - RELEASES_KEPT, 10)}
    shelf.store.keep_tensors(needed)
    for version in range(8, 8 - RELEASES_KEPT, -1):
        assert shelf.registry.rollback(now_s=2.0).release.version == version
    shelf.store.close()


def test_what_was_rolled_back_can_be_promoted_again(shelf: Shelf) -> None:
    shelf.promote(1, 2)
    shelf.registry.rollback(now_s=2.0)
    shelf.store.keep_tensors(shelf.registry.needed_versions())
    assert shelf.registry.promote(2, now_s=3.0).changed


def test_a_version_that_is_kept_no_more_cannot_be_promoted_and_others_are_named(
    shelf: Shelf,
) -> None:
    shelf.store.keep_tensors(frozenset({2, 3}))
    with pytest.raises(RegistryError, match="no longer kept; these versions' are: 2, 3"):
        shelf.registry.promote(1, now_s=1.0)
    assert shelf.registry.aliases() == {}


def test_a_version_comes_back_from_its_file(shelf: Shelf) -> None:
    shelf.promote(1)
    shelf.store.keep_tensors(frozenset({3}))
    assert shelf.registry.promotable() == [1, 3]
    shelf.promote(3)
    shelf.registry.rollback(now_s=2.0)
    kept = shelf.store.tensors(1)
    assert kept is not None
    assert kept[0] == commit(1).served


# -- files ---------------------------------------------------------------------------------------


def test_a_released_version_is_a_file_named_by_the_digest_that_devices_check(
    shelf: Shelf,
) -> None:
    shelf.promote(2)
    with shelf.file(2).open("rb") as file:
        kept = npz.read(file)
    assert tensors_digest(SHAPE, kept) == commit(2).digest.hex() == shelf.file(2).stem
    assert [path.name for path in shelf.file(2).parent.iterdir()] == [shelf.file(2).name]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another"])
def test_a_damaged_file_is_never_handed_out(shelf: Shelf, damage: str) -> None:
    shelf.promote(2)
    path = shelf.file(2)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-40])
    elif damage == "flipped":
        at = whole.index(np.float32(2.5).tobytes())
        path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(npz.to_bytes(tensors(1)))
    assert shelf.registry.export(2).read_bytes() == whole
    path.write_bytes(b"PK")
    shelf.store.keep_tensors(frozenset({3}))
    with pytest.raises(RegistryError, match="no longer kept"):
        shelf.registry.export(2)


def test_a_release_does_not_depend_on_a_place_for_its_file(shelf: Shelf) -> None:
    shelf.directory.write_text("a file where the directory should be")
    shelf.promote(2)
    assert shelf.stable() == 2


# -- lineage -------------------------------------------------------------------------------------


def test_a_version_knows_its_parent_and_what_went_into_it(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=2, rounds=ROUNDS)
    loopback.start()
    loopback.play()
    rows = loopback.coordinator.registry.versions()
    assert [row.parent for row in rows] == [None, 0, 1, 2, 3]
    assert [row.counted for row in rows] == [0, 2, 2, 2, 2]
    counted = [row for row in loopback.coordinator.store.updates(3) if row.counted]
    assert rows[3].weight == sum(row.weight for row in counted)
    # Each round's devices measure the version that they begin with.
    assert ["loss" in row.metrics for row in rows] == [True, True, True, True, False]


def test_a_file_of_the_first_schema_gets_lineage_and_who_released(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as old:
        for statement in MIGRATIONS[0].split(";\n"):
            old.execute(statement)
        old.execute("PRAGMA user_version=1")
        for version in (0, 1):
            old.execute(
                "INSERT INTO models VALUES (?, ?, ?, ?, ?)", (version, version, b"d", b"", 1.0)
            )
        old.execute("INSERT INTO tensors VALUES (1, ?, ?)", (b"12345678", b""))
        for key, counted in ((b"a", 1), (b"b", 1), (b"c", 0)):
            old.execute(
                "INSERT INTO updates VALUES (?, 'd', 1, 0, 10, 7, 5, ?, ?, 1.0, 2.0, ?, 'x')",
                (key, b"", b"", counted),
            )
        old.execute(
            "INSERT INTO releases (alias, version, digest, released_at)"
            " VALUES ('stable', 1, ?, 3.0)",
            (b"d",),
        )
        old.commit()
    with contextlib.closing(Store(path)) as store:
        first, second = store.versions()
        assert (first.parent, first.counted) == (None, 0)
        assert (second.parent, second.counted, second.weight) == (0, 2, 14)
        assert second.model_bytes == 8
        (release,) = store.releases()
        assert (release.actor, release.action, release.from_version) == (
            "run_over",
            "promote",
            None,
        )


# -- beside a coordinator that runs --------------------------------------------------------------


@pytest.fixture
def over(tmp_path: Path) -> Loopback:
    """A federation at its end: version 4 is stable, by the run."""
    loopback = Loopback(tmp_path, count=2, rounds=ROUNDS)
    loopback.start()
    loopback.play()
    return loopback


def deliver(loopback: Loopback) -> set[int]:
    while loopback.deliver():
        pass
    return {device.released.version for device in loopback.devices}


def beside(loopback: Loopback) -> Registry:
    """Another process."""
    return Registry(Store(loopback.coordinator.store.path))


def test_a_running_coordinator_hears_of_another_process_s_release(over: Loopback) -> None:
    beside(over).promote(3, now_s=over.now_s)
    over.coordinator.releases.tell()
    assert deliver(over) == {3}
    over.coordinator.releases.tell()
    assert not over.deliver(), "told twice"


def test_a_rollback_reaches_devices_that_hold_a_newer_version(over: Loopback) -> None:
    coordinator = over.coordinator
    coordinator.releases.promote(3, "stable", actor="http", now_s=over.now_s)
    assert deliver(over) == {3}
    coordinator.releases.rollback("stable", actor="http", now_s=over.now_s)
    assert deliver(over) == {4}
    coordinator.releases.promote(3, "stable", actor="http", now_s=over.now_s)
    digests = {
        tensors_digest(coordinator.models.schema, device.released.tensors)
        for device in over.devices
        if deliver(over) == {3}
    }
    assert digests == {coordinator.registry.version(3).digest.hex()}


def test_a_release_that_is_taken_back_before_it_arrives_is_not_adopted(over: Loopback) -> None:
    over.coordinator.releases.promote(3, "stable", actor="http", now_s=over.now_s)
    # Each device hears of it and asks for it; before the model is there it is taken back.
    for _ in over.devices:
        over.deliver()
    over.coordinator.releases.rollback("stable", actor="http", now_s=over.now_s)
    for _ in range(3):
        seen = {device.released.version for device in over.devices}
        assert seen == {4}
        if not over.deliver():
            break
    assert deliver(over) == {4}


def test_a_candidate_is_no_device_s_business(over: Loopback) -> None:
    over.coordinator.releases.promote(3, "candidate", actor="http", now_s=over.now_s)
    assert deliver(over) == {4}


def test_a_restart_does_not_undo_what_an_operator_did(over: Loopback) -> None:
    beside(over).promote(3, now_s=over.now_s)
    again = over.boot_coordinator()
    over.start()
    over.play()
    assert again.registry.aliases() == {"stable": 3}
    assert {device.released.version for device in over.devices} == {3}
    assert [row.actor for row in again.store.releases()] == ["run_over", "operator"]


def test_the_end_of_a_run_does_not_release_again_what_was_rolled_back(tmp_path: Path) -> None:
    """Promoted by hand just before the end, and taken back: `run_over` has no line of its own."""
    loopback = Loopback(tmp_path, count=2, rounds=ROUNDS)
    loopback.start()
    loopback.coordinator.releases.promote(0, "stable", actor="operator", now_s=loopback.now_s)
    while loopback.coordinator.models.version < 4:
        loopback.now_s += 0.05
        loopback.coordinator.wake(loopback.now_s)
        while loopback.deliver():
            pass
        for device in loopback.devices:
            device.wake(loopback.now_s)
    beside(loopback).promote(4, now_s=loopback.now_s)
    beside(loopback).rollback(now_s=loopback.now_s)
    loopback.play()
    assert loopback.coordinator.registry.aliases() == {"stable": 0}


def test_two_processes_that_roll_back_at_once_do_not_go_back_twice(
    over: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = beside(over), beside(over)
    ours.promote(3, now_s=1.0)
    ours.promote(0 if 0 in ours.promotable() else 4, now_s=1.0)
    make_whole = Registry._make_whole

    def meanwhile(registry: Registry, version: int) -> bytes:
        if registry is ours:
            theirs.rollback(now_s=2.0)
        return make_whole(registry, version)

    monkeypatch.setattr(Registry, "_make_whole", meanwhile)
    with pytest.raises(RegistryError, match="somebody else"):
        ours.rollback(now_s=2.0)


def test_tensors_that_an_alias_needs_outlive_later_rounds(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=2, rounds=ROUNDS)
    loopback.start()
    while loopback.coordinator.models.version < 1:
        loopback.now_s += 0.05
        loopback.coordinator.wake(loopback.now_s)
        while loopback.deliver() and loopback.coordinator.models.version < 1:
            pass
        for device in loopback.devices:
            device.wake(loopback.now_s)
    beside(loopback).promote(1, now_s=loopback.now_s)
    loopback.play()
    assert loopback.coordinator.registry.promotable() == [1, 3, 4]


# -- pause ---------------------------------------------------------------------------------------


def test_a_paused_coordinator_opens_no_round_over_restarts_too(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=2, rounds=ROUNDS)
    loopback.coordinator.rounds.opening.pause()
    loopback.start()
    loopback.play(until_s=200.0)
    loopback.boot_coordinator()
    loopback.start()
    loopback.play(until_s=200.0)
    assert loopback.coordinator.store.last_round() == 0
    loopback.coordinator.rounds.opening.resume(loopback.now_s)
    loopback.play()
    assert loopback.coordinator.finished
    assert loopback.coordinator.store.last_round() == 4
