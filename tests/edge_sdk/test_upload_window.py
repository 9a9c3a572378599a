"""An upload leaves in windows, is asked about only when it rests, and is not in memory."""

from pathlib import Path

from coordinator.config import Rounds, Uplink
from edge_sdk.driver import DeviceDriver
from edge_sdk.journal import SqliteJournal
from edge_sdk.signals import SealedUpdate
from fleet.toy import ToyTask
from tests.support.loopback import Loopback
from wire import frames, limits
from wire.messages import Chunk, UpdateOffer

TASK = ToyTask(hidden=1_000)
CHUNKS = 15  # 44 KB as float32 in chunks of 3 KB


class Slow(Loopback):
    """One device whose link takes one publication after the other, when the test says so."""

    def __init__(self, directory: Path, window: int) -> None:
        super().__init__(
            directory,
            count=1,
            rounds=Rounds(count=1, cohort=1, quorum=1.0, deadline_s=100_000.0),
            uplink=Uplink(codec="raw"),
            task=TASK,
        )
        self.under_way_most = 0
        self.chunks: list[int] = []
        self.offers = 0
        self._window = window
        self.driver._room = self._room
        self.start()
        self.driver.on_link_up(limits.PACKET_BYTES_MIN, self.now_s)

    @property
    def driver(self) -> DeviceDriver:
        driver = self.devices[0]
        assert isinstance(driver, DeviceDriver)
        return driver

    @property
    def under_way(self) -> int:
        return sum(topic.endswith("/up") for topic, _data in self._wire)

    def _room(self, most: int) -> int:
        return max(min(most, self._window) - self.under_way, 0)

    def take(self) -> bool:
        """The broker takes the oldest publication, and says so."""
        if self._wire and self._wire[0][0].endswith("/up"):
            self.under_way_most = max(self.under_way_most, self.under_way)
            self._note(self._wire[0][1])
        more = self.deliver()
        self.driver.send_more(self.now_s)
        return more

    def go_on(self, chunks: int) -> None:
        """Until so many chunks have been taken, and nothing is left to do at once."""
        for _ in range(1_000):
            if len(self.chunks) >= chunks:
                return
            if not self.take():
                self.now_s += 1.0
                self.coordinator.wake(self.now_s)
                self.driver.wake(self.now_s)
        raise AssertionError(f"{len(self.chunks)} chunks of {chunks}")

    def _note(self, data: bytes) -> None:
        message = frames.open_frame(data, self.address(0), self.signers[0].public_key, self.crypto)
        self.chunks += [message.index] if isinstance(message, Chunk) else []
        self.offers += isinstance(message, UpdateOffer)


def test_no_more_than_a_window_is_under_way(tmp_path: Path) -> None:
    slow = Slow(tmp_path, window=2)
    slow.go_on(CHUNKS)
    while slow.take():
        pass
    assert slow.chunks == list(range(CHUNKS))
    assert slow.under_way_most == 2
    assert not slow.driver.has_more_to_send
    assert [row.receipted_at is not None for row in slow.coordinator.store.updates()] == [True]


def test_nobody_asks_while_chunks_are_taken_however_slowly(tmp_path: Path) -> None:
    slow = Slow(tmp_path, window=2)
    slow.go_on(1)
    while slow.driver.has_more_to_send:
        slow.now_s += 4.0
        slow.driver.wake(slow.now_s)
        slow.take()
    assert slow.offers == 1


def test_a_broken_link_asks_and_sends_what_is_missing(tmp_path: Path) -> None:
    slow = Slow(tmp_path, window=2)
    slow.go_on(7)
    slow._wire.clear()
    slow.driver.on_link_down(slow.now_s)
    slow.driver.on_link_up(limits.PACKET_BYTES_MIN, slow.now_s)
    while slow.take():
        pass
    assert slow.offers == 2
    assert slow.chunks == list(range(CHUNKS))


def test_a_slice_of_a_payload_is_that_slice(tmp_path: Path) -> None:
    payload = bytes(range(256)) * 400
    journal = SqliteJournal(tmp_path)
    sealed = SealedUpdate(b"u" * 16, 3, 2, len(payload), b"d" * 32, 7, 1_000)
    journal.seal(sealed, payload)
    for start, size in ((0, 10), (5_000, 4_096), (len(payload) - 7, 100), (len(payload), 1)):
        assert journal.sealed_slice(b"u" * 16, start, size) == payload[start : start + size]
    assert journal.sealed_slice(b"x" * 16, 0, 10) is None
    journal.close()
