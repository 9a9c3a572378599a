"""Examples on a device: bounded, on one side for ever, gone when they are deleted."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk import ExampleError, ExampleStore, ExampleStoreError
from edge_sdk._example_buffer import BUFFER_EXAMPLES_MAX
from edge_sdk._example_file import PAGE_BYTES, rows_in
from tests.support.processes import ROOT, environment

NOW_S = 1_780_000_000.0
DAY_S = 86_400.0
FIELDS = {"x": ("float32", (3,)), "y": ("int64", ())}
FAST = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class Clocks:
    """Both clocks of a device, in a test's hand."""

    wall_s: float = NOW_S
    boot_s: float = 50.0

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.boot_s += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


Make = Callable[..., ExampleStore]


@pytest.fixture
def make(tmp_path: Path, clocks: Clocks) -> Iterator[Make]:
    """Stores on one file, each as a process of its own would have it."""
    made: list[ExampleStore] = []

    def build(fields: Any = FIELDS, **options: Any) -> ExampleStore:
        options = {"clock": lambda: clocks.wall_s, "boot_clock": lambda: clocks.boot_s} | options
        name = options.pop("name", "examples.sqlite")
        made.append(ExampleStore(tmp_path / name, fields, flush_s=30.0, **options))
        return made[-1]

    yield build
    for store in made:
        with contextlib.suppress(ExampleStoreError):
            store.close()


def add(store: ExampleStore, *labels: int, **options: Any) -> None:
    for label in labels:
        assert store.add(np.full(3, label, np.float32), label, **options)


def labels(store: ExampleStore) -> list[int]:
    train, holdout = store.split()
    return sorted([*train[1].tolist(), *holdout[1].tolist()])


# -- what comes back -----------------------------------------------------------------------------


def test_arrays_come_back_in_order_of_arrival_contiguous_and_in_their_dtypes(make: Make) -> None:
    store = make(holdout=0.0)
    add(store, *range(600))
    x, y = store.train()
    assert y.tolist() == list(range(600))
    assert (x[:, 0] == y).all()
    assert [str(x.dtype), str(y.dtype), x.shape] == ["float32", "int64", (600, 3)]
    assert x.flags.c_contiguous
    assert x.flags.writeable
    assert [len(array) for array in store.holdout()] == [0, 0]


def test_newest_bounds_what_is_read(make: Make) -> None:
    store = make(holdout=0.5)
    add(store, *range(200))
    whole, some = store.split(), store.split(newest=7)
    assert some.train[1].tolist() == whole.train[1].tolist()[-7:]
    assert some.holdout[1].tolist() == whole.holdout[1].tolist()[-7:]


def test_a_store_that_nothing_was_added_to_has_empty_arrays(make: Make) -> None:
    assert [array.shape for array in make().train()] == [(0, 3), (0,)]


def test_a_restart_finds_what_was_closed(make: Make) -> None:
    with make() as store:
        add(store, 1, 2, 3)
    assert store.add(np.zeros(3, np.float32), 4) is False
    assert labels(make()) == [1, 2, 3]


def test_fields_by_name_are_as_good_as_in_order(make: Make) -> None:
    store = make()
    store.add(y=5, x=[1.0, 2.0, 3.0])
    assert labels(store) == [5]


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (np.zeros(4, np.float32), 0, "x: [4], expected [3]"),
        ([1.0, np.nan, 0.0], 0, "x: has values that are not finite, or too large for float32"),
        ([1.0, 1e300, 0.0], 0, "x: has values that are not finite, or too large for float32"),
        ([1j, 0, 0], 0, "x: complex128, expected float32"),
        (np.zeros(3, np.float32), 1.5, "y: float64, expected int64"),
        (np.zeros(3, np.float32), np.uint64(2**63), "y: has values that int64 does not have"),
        (np.zeros(3, np.float32), [1], "y: [1], expected []"),
    ],
)
def test_what_is_no_example_is_refused_in_a_line_and_nothing_is_kept(
    make: Make, x: Any, y: Any, text: str
) -> None:
    store = make()
    with pytest.raises(ExampleError) as refused:
        store.add(x, y)
    assert str(refused.value) == text
    assert labels(store) == []


def test_a_missing_field_is_refused(make: Make) -> None:
    with pytest.raises(ExampleError, match="an example is x, y"):
        make().add(np.zeros(3, np.float32))
    with pytest.raises(ExampleError, match="an example is x, y"):
        make().add(x=np.zeros(3, np.float32), z=1)


@pytest.mark.parametrize(
    ("fields", "options", "text"),
    [
        ({}, {}, "name at least one"),
        ({"at": ("f4", ())}, {}, "none `at` or `group`"),
        ({"x": ("U4", ())}, {}, "a field is of numbers"),
        ({"x": ("f4", (0,))}, {}, "each length > 0"),
        (FIELDS, {"holdout": 1.0}, "not a fraction"),
        (FIELDS, {"examples_max": 0}, "at least 1"),
        (FIELDS, {"age_s_max": -1.0}, "0 means no bound"),
        ({"x": ("f4", (10**6,))}, {"bytes_max": 10**6}, "too little for a file and one example"),
    ],
)
def test_a_store_that_makes_no_sense_is_refused(
    make: Make, fields: Any, options: Any, text: str
) -> None:
    with pytest.raises(ExampleError, match=text):
        make(fields, **options)


# -- honest evaluation ---------------------------------------------------------------------------


@pytest.mark.slow
@FAST
@given(st.lists(st.lists(st.integers(0, 30), max_size=40), min_size=1, max_size=4))
def test_an_example_stays_on_its_side_added_twice_and_after_restarts(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("split") / "examples.sqlite"
    side: dict[int, str] = {}
    for run in runs:
        with ExampleStore(path, FIELDS, holdout=0.4) as store:
            add(store, *run)
            train, holdout = store.split()
        for name, found in (("train", train[1]), ("holdout", holdout[1])):
            for label in found.tolist():
                assert side.setdefault(label, name) == name


def test_a_group_is_on_one_side_and_different_groups_are_not_all_on_one(make: Make) -> None:
    store = make(holdout=0.5)
    for session in range(40):
        add(store, *range(session * 10, session * 10 + 10), group=f"session-{session}")
    train, holdout = store.split()
    sessions = [{label // 10 for label in side[1].tolist()} for side in (train, holdout)]
    assert not sessions[0] & sessions[1]
    assert min(map(len, sessions)) >= 8


def test_the_fraction_is_held_out_and_another_file_splits_otherwise(make: Make) -> None:
    held = []
    for name in ("one.sqlite", "two.sqlite"):
        store = make(holdout=0.2, name=name)
        add(store, *range(1_000))
        held.append(set(store.holdout()[1].tolist()))
    assert all(150 <= len(one) <= 250 for one in held)
    assert held[0] != held[1], "the secret is each file's own"


def test_the_same_split_key_makes_the_same_split(make: Make) -> None:
    held = []
    for name in ("one.sqlite", "two.sqlite"):
        store = make(name=name, split_key=b"of the app")
        add(store, *range(300))
        held.append(store.holdout()[1].tolist())
    assert held[0] == held[1]


def test_another_fraction_moves_nothing_until_the_store_is_cleared(make: Make) -> None:
    with make(holdout=0.5) as store:
        add(store, *range(200))
        held = store.holdout()[1].tolist()
    store = make(holdout=0.1)
    assert store.holdout()[1].tolist() == held
    assert store.stats().holdout == 0.5
    store.clear()
    assert store.stats().holdout == 0.1


# -- bounds --------------------------------------------------------------------------------------


@pytest.mark.slow
@FAST
@given(
    examples_max=st.integers(1, 60),
    batches=st.lists(st.integers(0, 50), min_size=1, max_size=8),
)
def test_there_are_never_more_examples_than_allowed_and_the_newest_stay(
    tmp_path_factory: pytest.TempPathFactory, examples_max: int, batches: list[int]
) -> None:
    path = tmp_path_factory.mktemp("bound") / "examples.sqlite"
    added = 0
    with ExampleStore(path, FIELDS, examples_max=examples_max) as store:
        for batch in batches:
            add(store, *range(added, added + batch))
            added += batch
            assert labels(store) == list(range(max(added - examples_max, 0), added))


@pytest.mark.parametrize("floats", [3, 200, 900, 1_100, 5_000])
def test_the_file_never_passes_its_bytes_and_most_of_them_are_used(make: Make, floats: int) -> None:
    bytes_max = 64 * PAGE_BYTES
    store = make({"x": ("float32", (floats,))}, bytes_max=bytes_max, examples_max=10**6)
    fits = rows_in(bytes_max, floats * 4)
    for number in range(3 * fits):
        store.add(np.full(floats, number, np.float32))
        if number % max(fits // 7, 1) == 0:
            store.flush()
            assert store.path.stat().st_size <= bytes_max
    kept = store.stats().train + store.stats().held_out
    assert fits * 0.9 <= kept <= fits
    assert kept * (floats * 4 + 44) >= 0.6 * bytes_max
    store.close()
    assert store.path.stat().st_size <= bytes_max
    assert list(store.path.parent.iterdir()) == [store.path], "and nothing is left beside it"


def test_a_file_in_use_for_long_does_not_grow(make: Make) -> None:
    store = make(examples_max=300)
    sizes = []
    for number in range(30):
        add(store, *range(number * 100, number * 100 + 100))
        store.flush()
        if number % 4 == 3:
            store.delete(ids=store.index().ids[::3])
        sizes.append(store.stats().file_bytes)
    assert max(sizes[15:]) <= max(sizes[:15])
    assert max(sizes) < 3 << 20


def test_an_example_goes_when_it_is_too_old_and_not_before(make: Make, clocks: Clocks) -> None:
    store = make(age_s_max=10 * DAY_S)
    for day in range(15):
        add(store, day)
        store.flush()
        clocks.pass_s(DAY_S)
    assert labels(store) == list(range(5, 15))


def test_time_that_the_device_was_off_counts(make: Make, clocks: Clocks) -> None:
    with make(age_s_max=10 * DAY_S) as store:
        add(store, 1)
    clocks.wall_s += 20 * DAY_S
    clocks.boot_s = 3.0
    store = make(age_s_max=10 * DAY_S)
    add(store, 2)
    assert labels(store) == [1, 2], "a clock may be wrong by twenty days: it has a day to be set"
    for _ in range(30):
        clocks.pass_s(3_600.0)
        store.stats()
    assert labels(store) == [2]


@pytest.mark.parametrize("jump_s", [365 * DAY_S, -365 * DAY_S])
def test_a_clock_that_jumps_a_year_deletes_nothing_and_keeps_nothing_longer(
    make: Make, clocks: Clocks, jump_s: float
) -> None:
    with make(age_s_max=10 * DAY_S) as store:
        add(store, 1)
        clocks.pass_s(2 * DAY_S)
    store = make(age_s_max=10 * DAY_S)
    add(store, 2)
    clocks.pass_s(7_200.0)
    clocks.wall_s += jump_s
    for _ in range(7):
        assert labels(store) == [1, 2]
        clocks.pass_s(DAY_S)
    clocks.pass_s(DAY_S)
    assert labels(store) == [2]
    clocks.pass_s(2 * DAY_S)
    assert labels(store) == []


def test_a_device_that_starts_with_a_clock_a_year_ahead_and_is_set_right_loses_nothing(
    make: Make, clocks: Clocks
) -> None:
    with make(age_s_max=10 * DAY_S) as store:
        add(store, 1)
    clocks.wall_s += 365 * DAY_S
    clocks.boot_s = 3.0
    store = make(age_s_max=10 * DAY_S)
    clocks.pass_s(3_600.0)
    assert labels(store) == [1]
    clocks.wall_s -= 365 * DAY_S
    for _ in range(9):
        clocks.pass_s(DAY_S)
        assert labels(store) == [1]
    clocks.pass_s(DAY_S)
    assert labels(store) == []


# -- deletion ------------------------------------------------------------------------------------


def bytes_on_disk(store: ExampleStore) -> bytes:
    return b"".join(path.read_bytes() for path in store.path.parent.iterdir() if path.is_file())


def marker(number: int) -> np.ndarray:
    return np.frombuffer(f"<<marker-{number:06}>>".ljust(64).encode(), np.uint8)


MARKERS = {"x": ("uint8", (64,))}


@pytest.mark.slow
@FAST
@given(st.lists(st.tuples(st.integers(1, 120), st.integers(0, 2**32)), min_size=1, max_size=5))
def test_what_is_deleted_is_nowhere_in_the_files(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("gone") / "examples.sqlite"
    kept: set[int] = set()
    number = 0
    with ExampleStore(path, MARKERS, holdout=0.0) as store:
        for count, seed in rounds:
            for _ in range(count):
                store.add(marker(number), at=float(number))
                kept.add(number)
                number += 1
            index = store.index()
            doomed = np.random.default_rng(seed).random(len(index.ids)) < 0.6
            assert store.delete(ids=index.ids[doomed]) == doomed.sum()
            kept -= {int(at_s) for at_s in index.at_s[doomed]}
            found = bytes_on_disk(store)
            there = {n for n in range(number) if marker(n).tobytes().rstrip() in found}
            assert there == kept


def test_a_copy_that_sqlite_left_where_it_moved_a_row_from_goes_too(make: Make) -> None:
    """SQLite balances pages as rows go, and zeroes what is deleted where it is by then."""
    store = make(MARKERS, holdout=0.0)
    number = 0
    for count in (81, 52):
        for _ in range(count):
            store.add(marker(number), at=float(number))
            number += 1
        index = store.index()
        doomed = np.random.default_rng(0).random(len(index.ids)) < 0.6
        store.delete(ids=index.ids[doomed])
    found = bytes_on_disk(store)
    there = [n for n in range(number) if marker(n).tobytes().rstrip() in found]
    assert there == sorted(store.index().at_s.astype(int).tolist())
    store.delete(after=0.0)
    store.add(marker(number))
    assert store.index().ids.tolist() == [number + 1]  # a number is never given twice


def test_cleared_means_nowhere_in_the_files_while_the_store_stays_open(make: Make) -> None:
    store = make(MARKERS)
    for number in range(500):
        store.add(marker(number))
    store.flush()
    assert b"<<marker-" in bytes_on_disk(store)
    store.clear()
    assert b"<<marker-" not in bytes_on_disk(store)
    assert store.stats().file_bytes < 16 * PAGE_BYTES
    store.add(marker(501))
    assert len(store.split().train[0]) + len(store.split().holdout[0]) == 1


def test_what_retention_has_dropped_is_nowhere_when_the_log_was_cleaned(
    make: Make, clocks: Clocks
) -> None:
    store = make(MARKERS, examples_max=50)
    for number in range(200):
        store.add(marker(number))
    store._turn()
    clocks.pass_s(61.0)
    store._turn()
    found = bytes_on_disk(store)
    assert [n for n in range(200) if marker(n).tobytes().rstrip() in found] == list(range(150, 200))


def test_delete_takes_a_time_and_a_group_and_refuses_to_guess(make: Make) -> None:
    store = make()
    for label in range(10):
        add(store, label, at=100.0 + label, group="even" if label % 2 == 0 else None)
    assert store.delete(before=102.0) == 2
    assert store.delete(after=108.0) == 2
    assert store.delete(after=104.0, before=106.0, group="even") == 1
    assert labels(store) == [2, 3, 5, 6, 7]
    assert store.delete(group="even") == 2
    assert store.delete(ids=[]) == 0
    with pytest.raises(ExampleError, match="clear"):
        store.delete()
    assert labels(store) == [3, 5, 7]


def test_the_file_is_its_owners_alone(make: Make) -> None:
    store = make()
    add(store, 1)
    store.flush()
    assert {path.stat().st_mode & 0o077 for path in store.path.parent.iterdir()} == {0}


def test_destroyed_leaves_no_file_and_takes_nothing(make: Make) -> None:
    store = make()
    add(store, 1)
    store.flush()
    add(store, 2)
    store.destroy()
    assert list(store.path.parent.iterdir()) == []
    assert store.add(np.zeros(3, np.float32), 3) is False
    with pytest.raises(ExampleStoreError, match="closed"):
        store.train()
    store.destroy()


# -- bad days ------------------------------------------------------------------------------------


def test_a_file_that_is_none_is_an_error_in_a_line_and_clear_begins_anew(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "examples.sqlite").write_bytes(b"this was never a database" * 400)
    store = make()
    assert store.add(np.zeros(3, np.float32), 1), "the app's loop goes on"
    with pytest.raises(ExampleStoreError, match=r"damaged: clear\(\) begins anew"):
        store.train()
    assert "damaged" in str(store.error)
    store.clear()
    assert store.error is None
    add(store, 2)
    assert labels(store) == [2]


@pytest.mark.slow
@FAST
@given(seed=st.integers(0, 2**32), torn=st.integers(1, 40))
def test_a_damaged_file_is_a_typed_error_or_read_and_clear_always_helps(
    tmp_path_factory: pytest.TempPathFactory, seed: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "examples.sqlite"
    with ExampleStore(path, FIELDS) as store:
        add(store, *range(400))
    chance = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in chance.integers(0, len(data), torn * 20):
        data[place] = chance.integers(0, 256)
    path.write_bytes(bytes(data[: chance.integers(100, len(data) + 1)]))
    store = ExampleStore(path, FIELDS)
    for use in (store.split, store.stats, store.index, lambda: store.delete(before=1e12)):
        with contextlib.suppress(ExampleStoreError):
            use()
    store.clear()
    add(store, 7)
    assert labels(store) == [7]
    store.close()


def test_a_file_of_other_fields_is_refused_and_named_and_clear_takes_it_over(make: Make) -> None:
    with make() as store:
        add(store, 1)
    other = make({"x": ("float32", (5,))}, holdout=0.0)
    with pytest.raises(ExampleStoreError) as refused:
        other.train()
    assert "x float32[3], y int64[], and this app's are x float32[5]" in str(refused.value)
    other.clear()
    other.add(np.zeros(5))
    assert other.train()[0].shape == (1, 5)


def test_a_full_disk_loses_nothing_that_fits_the_buffer_and_reading_goes_on(make: Make) -> None:
    store = make(holdout=0.0)
    add(store, *range(100))
    store.flush()
    assert store._opened is not None
    pages = store._opened._pragma("page_count")
    store._opened._db.execute(f"PRAGMA max_page_count={pages}")  # as a disk without room
    add(store, *range(100, 1_000))
    with pytest.raises(ExampleStoreError, match="make room on the disk"):
        store.flush()
    assert "make room" in str(store.error)
    assert labels(store) == list(range(100))
    assert store.stats().buffered == 900
    store._opened._db.execute("PRAGMA max_page_count=100000")
    store.flush()
    assert store.error is None
    assert labels(store) == list(range(1_000))


def test_a_disk_that_takes_nothing_costs_the_oldest_and_never_more_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(holdout=0.0)

    def broken(*_args: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("edge_sdk._example_file.ExampleFile.write", broken)
    for round_ in range(3):
        add(store, *range(round_ * 2_000, round_ * 2_000 + 2_000))
        with pytest.raises(ExampleStoreError, match="disk I/O error"):
            store.flush()
    monkeypatch.undo()
    assert store.stats().dropped == 6_000 - BUFFER_EXAMPLES_MAX
    assert labels(store) == list(range(6_000 - BUFFER_EXAMPLES_MAX, 6_000))


def test_a_directory_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ExampleStore(tmp_path / "file" / "examples.sqlite", FIELDS)
    assert store.add(np.zeros(3), 1)
    with pytest.raises(ExampleStoreError, match="file"):
        store.train()
    store.destroy()


# -- threads and processes -----------------------------------------------------------------------


def test_threads_add_while_others_read_whole_moments(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.sqlite", FIELDS, examples_max=300, flush_s=0.001)
    done = threading.Event()

    def work(offset: int) -> None:
        for label in range(400):
            add(store, offset + label)
        done.set()

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 1_000, 2_000)]
    for thread in threads:
        thread.start()
    while not done.is_set():
        for x, y in store.split():
            assert (x[:, 0] == y).all()
            for offset in (0, 1_000, 2_000):
                own = y[(y >= offset) & (y < offset + 1_000)]
                assert (np.diff(own) > 0).all(), "in each thread's order"
    for thread in threads:
        thread.join()
    assert len(labels(store)) == 300
    store.close()


def test_two_stores_on_one_file_see_each_others_examples_on_the_same_sides(make: Make) -> None:
    one, two = make(), make()
    add(one, *range(100))
    one.flush()
    add(two, *range(100, 200))
    two.flush()
    first, second = one.split(), two.split()
    assert labels(one) == labels(two) == list(range(200))
    assert first.holdout[1].tolist() == second.holdout[1].tolist()
    assert two.delete(before=NOW_S + 1.0) == 200
    assert labels(one) == []


def test_what_is_deleted_while_somebody_reads_is_gone_when_they_are_done(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk._example_file.BUSY_S", 0.01)
    store = make(MARKERS)
    for number in range(20):
        store.add(marker(number))
    store.flush()
    assert store._opened is not None
    with store._opened.snapshot() as reading:
        reading.execute("SELECT * FROM examples").fetchone()
        with pytest.raises(ExampleStoreError, match="is being read") as busy:
            store.delete(before=NOW_S + 1.0)
        assert busy.value.busy
    assert len(store.index().ids) == 0
    store.delete(before=0.0)
    assert b"<<marker-" not in bytes_on_disk(store)


KILLED = """
import sys, time
import numpy as np
from edge_sdk import ExampleStore
store = ExampleStore(sys.argv[1], {"y": ("int64", ())}, holdout=0.0, flush_s=0.2)
for number in range(10**9):
    store.add(number)
    print(number, time.monotonic(), flush=True)
    time.sleep(0.002)
"""


@pytest.mark.live
def test_killed_in_the_middle_of_adds_only_the_last_moment_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(400)]
            os.kill(process.pid, signal.SIGKILL)
            said += process.stdout.readlines()
        whole = [line.split() for line in said if line.endswith("\n")]
        added = [(int(number), float(at_s)) for number, at_s in whole]
        with ExampleStore(path, {"y": ("int64", ())}, holdout=0.0) as store:
            kept = store.train()[0].tolist()
            store.clear()
        assert kept == list(range(len(kept))), "no hole"
        lost = [at_s for number, at_s in added if number >= len(kept)]
        assert len(kept) > 100
        assert not lost or lost[-1] - lost[0] <= 0.2 + 0.3  # a machine with other work


@pytest.mark.live
def test_two_processes_add_to_one_file_and_nothing_is_lost(tmp_path: Path) -> None:
    script = """
import sys
from edge_sdk import ExampleStore
with ExampleStore(sys.argv[1], {"y": ("int64", ())}, holdout=0.0, flush_s=0.01) as store:
    for number in range(1_000):
        store.add(int(sys.argv[2]) + number)
        if number % 50 == 0:
            store.flush()
"""
    path = tmp_path / "examples.sqlite"
    started = [
        subprocess.Popen([sys.executable, "-c", script, path, offset], env=environment(), cwd=ROOT)
        for offset in ("0", "1000")
    ]
    assert [process.wait() for process in started] == [0, 0]
    with ExampleStore(path, {"y": ("int64", ())}, holdout=0.0) as store:
        assert sorted(store.train()[0].tolist()) == list(range(2_000))


def test_the_thread_writes_by_itself_and_is_not_there_before_it_is_needed(tmp_path: Path) -> None:
    before = threading.active_count()
    store = ExampleStore(tmp_path / "examples.sqlite", FIELDS, flush_s=0.005)
    assert threading.active_count() == before
    assert not store.path.exists()
    add(store, 1)
    until_s = time.monotonic() + 10.0
    while store._buffer and time.monotonic() < until_s:
        time.sleep(0.005)
    store.close()
    assert threading.active_count() == before
    db = sqlite3.connect(store.path)
    assert db.execute("SELECT COUNT(*) FROM examples").fetchone() == (1,)
    db.close()
