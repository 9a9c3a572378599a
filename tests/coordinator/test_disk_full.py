"""A full disk refuses politely: nothing is lost, nothing ends, and it goes on when there is room.

Room comes and goes by the test's word; SQLite's own word for it is checked once, with real limits.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import init_state
from coordinator import round as rounds
from coordinator.aggregation import RoundAggregation
from coordinator.config import Rounds
from coordinator.headroom import Headroom
from coordinator.store import DiskFullError, Store
from coordinator.timers import DISK_AGAIN, DISK_AGAIN_S, PLAN_AGAIN
from tests.support.loopback import Loopback
from tests.support.processes import environment
from wire import Report, SystemSecrets, frames, topics
from wire.errors import DigestMismatchError
from wire.messages import Declined, Failed, Message, Refused, Settled, UpdateOffer

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

ROUNDS = Rounds(count=3, cohort=4, quorum=1.0, deadline_s=100_000.0)


class Disk:
    """A store's connection, on a disk that has room or has not, or not for every write."""

    def __init__(self, store: Store) -> None:
        self.full: Callable[[], bool] = lambda: False
        self._right: Any = store._db
        store._db = self  # type: ignore[assignment] # it stands in for it

    def __getattr__(self, name: str) -> object:
        return getattr(self._right, name)

    def execute(self, sql: str, parameters: object = ()) -> object:
        if sql.startswith(("INSERT", "UPDATE", "DELETE", "COMMIT")) and self.full():
            raise DiskFullError("full")
        return self._right.execute(sql, parameters)

    def executemany(self, sql: str, parameters: object) -> object:
        if self.full():
            raise DiskFullError("full")
        return self._right.executemany(sql, parameters)


def fill(loopback: Loopback) -> Disk:
    disk = Disk(loopback.coordinator.store)
    disk.full = lambda: True
    return disk


def make_room(disk: Disk) -> None:
    disk.full = lambda: False


def test_sqlites_own_word_for_it_is_told_apart_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite3")
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages + 2}")
    both = {"small": b"x", "large": bytes(100_000)}
    with pytest.raises(DiskFullError, match="the disk is full; make room"), store.transaction():
        _ = [store.put(key, value) for key, value in both.items()]  # type: ignore[func-returns-value] # one statement
    assert store.get("small") is None
    store.put("small", b"x")
    store.close()


class Watched(Loopback):
    """A loopback that keeps what the coordinator says."""

    said: list[Message]

    def _send(self, topic: str, data: bytes) -> None:
        if topic.endswith("/down"):
            self.said.append(frames.decode(frames.parse(data), topics.parse(topic)))
        super()._send(topic, data)

    def deliver_all(self) -> None:
        while self.deliver():
            pass

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.coordinator.wake(self.now_s)
        for device in self.devices:
            device.wake(self.now_s)


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Watched]:
    Watched.said = []
    made = Watched(tmp_path, count=4, rounds=ROUNDS)
    made.start()
    yield made
    made.coordinator.store.close()


def undisturbed(directory: Path) -> bytes:
    directory.mkdir()
    loopback = Loopback(directory, count=4, rounds=ROUNDS)
    loopback.start()
    loopback.play()
    digest = loopback.coordinator.models.digest
    loopback.coordinator.store.close()
    return digest


def refusals(loopback: Watched) -> list[Refused]:
    return [m for m in loopback.said if isinstance(m, Refused)]


def test_without_headroom_an_offer_is_refused_kept_on_its_device_and_taken_later(
    loopback: Watched, tmp_path: Path
) -> None:
    while loopback.coordinator.store.last_round() == 0:
        if not loopback.deliver():
            loopback.pass_time(2.5)
    loopback.free_bytes = 1_000_000
    for _ in range(40):
        loopback.deliver_all()
        loopback.pass_time(2.5)
    assert loopback.coordinator.store.updates() == []
    assert {(m.kind, m.reason) for m in refusals(loopback)} == {(UpdateOffer.KIND, "disk_full")}
    # 100 seconds: it asked at once, and then less and less often.
    assert len(refusals(loopback)) <= 7 * len(loopback.devices)
    assert all(d.session.sealed is not None for d in loopback.devices)
    assert [r.what for r in loopback.reports].count("disk_full") == 1
    loopback.free_bytes = 2**62
    loopback.play(until_s=3_000.0)
    assert "disk_has_room" in [r.what for r in loopback.reports]
    assert loopback.coordinator.models.digest == undisturbed(tmp_path / "undisturbed")


def test_an_update_that_finds_no_room_has_no_receipt_no_line_and_no_payload(
    loopback: Watched, tmp_path: Path
) -> None:
    store = loopback.coordinator.store
    while loopback.coordinator.store.last_round() == 0:
        if not loopback.deliver():
            loopback.pass_time(2.5)
    disk = fill(loopback)
    for _ in range(10):
        loopback.deliver_all()
        loopback.pass_time(2.5)
    assert store.updates() == []
    assert store._db.execute("SELECT COUNT(*) FROM spool").fetchone()[0] == 0
    assert not loopback.coordinator.rounds.round.updates, "the round knows what is not on disk"
    assert {m.reason for m in refusals(loopback)} == {"disk_full"}
    make_room(disk)
    loopback.play(until_s=3_000.0)
    assert loopback.coordinator.models.digest == undisturbed(tmp_path / "undisturbed")


def closing_without_room(loopback: Watched) -> None:
    """Three of four are accepted; the commit that the fourth leads to finds no room."""
    store = loopback.coordinator.store
    right = Store.commit_round

    def no_room(*_: object, **__: object) -> None:
        raise DiskFullError("full")

    store.commit_round = no_room  # type: ignore[method-assign] # a full disk
    while loopback.coordinator.rounds.round.phase is not rounds.Phase.CLOSING:
        if not loopback.deliver():
            loopback.pass_time(2.5)
    store.commit_round = right.__get__(store)  # type: ignore[method-assign]


def test_a_commit_that_finds_no_room_waits_closing_and_loses_no_accepted_update(
    loopback: Watched, tmp_path: Path
) -> None:
    closing_without_room(loopback)
    conductor = loopback.coordinator.rounds
    accepted = conductor.round.accepted
    assert len(accepted) == 4
    assert conductor.waits_for_room
    assert not [m for m in loopback.said if isinstance(m, Settled)]
    loopback.pass_time(DISK_AGAIN_S)
    assert not loopback.coordinator.rounds.waits_for_room
    assert sorted(r.update_id for r in loopback.coordinator.store.updates(1)) == sorted(accepted)
    loopback.play(until_s=3_000.0)
    assert loopback.coordinator.models.digest == undisturbed(tmp_path / "undisturbed")


def test_a_process_that_dies_waiting_for_room_commits_the_same_when_it_comes_back(
    loopback: Watched, tmp_path: Path
) -> None:
    closing_without_room(loopback)
    loopback.coordinator.store.close()
    loopback.boot_coordinator().start(loopback.now_s)
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play(until_s=3_000.0)
    assert loopback.coordinator.models.digest == undisturbed(tmp_path / "undisturbed")


def test_while_a_round_waits_for_room_floods_of_events_make_no_long_queue(
    loopback: Watched,
) -> None:
    closing_without_room(loopback)
    conductor = loopback.coordinator.rounds
    for number in range(4):
        device = loopback.devices[number].session
        for _ in range(100):
            loopback.speak(number, Failed(round=1, reason="stopped"))
            loopback.speak(number, Declined(check_in=device.check_in, round=1, reason="asleep"))
    assert len(conductor._postponed) == 1


def test_check_ins_that_come_together_and_find_no_room_are_written_when_there_is(
    loopback: Watched,
) -> None:
    coordinator = loopback.coordinator
    disk = fill(loopback)
    with coordinator.burst(lambda: loopback.now_s):
        loopback.deliver_all()
    assert {row["last_check_in"] for row in coordinator.store.devices().values()} == {0}
    make_room(disk)
    loopback.pass_time(6.0)
    assert 0 not in {row["last_check_in"] for row in coordinator.store.devices().values()}


def test_a_device_is_struck_for_what_was_no_update_also_if_that_found_no_room_at_first(
    loopback: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, right = loopback.coordinator.store, RoundAggregation.accept
    liar = next(iter(sorted(store.devices())))

    def accept(self: Any, update_id: bytes, device: str, *rest: Any, **how: Any) -> None:
        if device == liar:
            disk.full = lambda: True
            raise DigestMismatchError("rubbish")
        right(self, update_id, device, *rest, **how)

    disk = Disk(store)
    monkeypatch.setattr(RoundAggregation, "accept", accept)
    while not loopback.coordinator.rounds.waits_for_room:
        if not loopback.deliver():
            loopback.pass_time(2.5)
    assert store.standing(liar).strikes == 0.0
    make_room(disk)
    loopback.pass_time(DISK_AGAIN_S)
    assert store.standing(liar).strikes == 1.0


def test_no_round_opens_and_nobody_is_asked_for_work_without_room(loopback: Watched) -> None:
    loopback.free_bytes = 0
    for _ in range(10):
        loopback.deliver_all()
        loopback.pass_time(2.5)
    assert loopback.coordinator.store.last_round() == 0
    assert loopback.coordinator.rounds.timers[PLAN_AGAIN] <= loopback.now_s + DISK_AGAIN_S
    loopback.free_bytes = 2**62
    loopback.play(until_s=3_000.0)
    assert loopback.coordinator.models.version == 3


def test_a_round_that_finds_no_room_to_open_invites_nobody_and_keeps_its_leases(
    loopback: Watched,
) -> None:
    disk = fill(loopback)
    for _ in range(10):
        loopback.deliver_all()
        loopback.pass_time(2.5)
    coordinator = loopback.coordinator
    assert not coordinator.rounds.is_open
    assert len(coordinator.leases.valid(loopback.now_s)) == 4
    make_room(disk)
    loopback.play(until_s=3_000.0)
    assert coordinator.models.version == 3


def test_the_last_release_waits_for_room_and_the_run_is_not_over_before(loopback: Watched) -> None:
    coordinator = loopback.coordinator
    while coordinator.models.version < 3:
        if not loopback.deliver():
            loopback.pass_time(2.5)
    disk = fill(loopback)
    loopback.pass_time(1.0)
    assert coordinator.store.releases() == []
    assert not coordinator.finished
    make_room(disk)
    loopback.pass_time(DISK_AGAIN_S)
    assert [row.version for row in coordinator.store.releases()] == [3]
    assert coordinator.finished


@pytest.mark.parametrize("seed", range(6))
def test_however_often_room_comes_and_goes_the_model_is_the_undisturbed_one(
    loopback: Watched, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    coordinator, store, disk = loopback.coordinator, loopback.coordinator.store, fill(loopback)
    is_full = [False]
    disk.full = lambda: is_full[0] and chance.random() < 0.7
    for _ in range(3_000):
        is_full[0] = chance.random() < 0.5
        if not loopback.deliver():
            loopback.pass_time(chance.choice((0.5, 5.0, 20.0)))
        if coordinator.finished:
            break
    make_room(disk)
    loopback.play(until_s=20_000.0)
    assert coordinator.finished
    rows = store.updates()
    assert len(rows) == 12
    assert all(row.counted for row in rows)
    assert coordinator.models.digest == undisturbed(tmp_path / "undisturbed")


def test_counts_of_errors_wait_in_memory_for_room(loopback: Watched) -> None:
    disk = fill(loopback)
    loopback.inject(0, b"")
    loopback.pass_time(10.0)
    make_room(disk)
    name = loopback.devices[0].session.device
    assert loopback.incidents()[name, "truncated"] == 1


def test_headroom_grows_with_the_model_and_the_payload_and_is_said_once() -> None:
    said: list[Report] = []
    free = [2**40]
    small = Headroom(lambda: free[0], parameters=1_000, updates=10, observe=said.append)
    large = Headroom(lambda: free[0], parameters=1_000_000, updates=10, observe=said.append)
    assert large.reserve_bytes - small.reserve_bytes == 2 * 12 * 999_000
    free[0] = small.reserve_bytes
    assert small.has_room(0)
    assert not small.has_room(1)
    assert not small.has_room(1)
    free[0] += 2
    assert small.has_room(1)
    assert [r.what for r in said] == ["disk_full", "disk_has_room"]


@pytest.mark.live
@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_start_on_a_full_disk_is_one_line_that_says_so(tmp_path: Path) -> None:
    init_state(tmp_path / "state", SystemSecrets())
    (tmp_path / "federation.toml").write_text("")
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, 0)); "
    code = limit + "from potluck.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [
            *(sys.executable, "-c", code),
            *("coordinator", "run", "federation.toml", "--state-dir", "state"),
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "disk is full" in done.stderr


LIMITED: str = """
import resource, sys
from pathlib import Path
from coordinator.config import Rounds
from tests.support.loopback import Loopback

loopback = Loopback(Path(sys.argv[1]), count=4, rounds=Rounds(count=3, cohort=4, quorum=1.0))
loopback.start()
store = loopback.coordinator.store
while store.last_round() == 0:
    if not loopback.deliver():
        loopback.now_s += 2.5
        loopback.coordinator.wake(loopback.now_s)
# The log cannot grow any more: every write fails, as with a quota.
wal = Path(str(store.path) + "-wal").stat().st_size
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (wal, hard))
for _ in range(10):
    while loopback.deliver():
        pass
    loopback.now_s += 2.5
    loopback.coordinator.wake(loopback.now_s)
    for device in loopback.devices:
        device.wake(loopback.now_s)
assert "disk_full" in [report.what for report in loopback.reports], "it did not notice"
written = len(store.updates())
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
loopback.play(until_s=5_000.0)
assert loopback.coordinator.models.version == 3
print(written, len([row for row in store.updates() if row.counted]))
"""


@pytest.mark.live
@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_file_that_may_not_grow_is_a_full_disk_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, counted = map(int, done.stdout.split())
    assert (written, counted) == (0, 12)
    assert DISK_AGAIN
