import random
from pathlib import Path

import numpy as np
import pytest

from coordinator import downloads as module
from coordinator.downloads import Downloads
from coordinator.models import Models
from coordinator.store import Store
from edge_sdk.download import Download
from edge_sdk.parts import PartFiles
from wire import Manifest
from wire.messages import Chunk, FetchRequest, Message, ModelOffer

PARAMETERS = 20_000
CHUNK = 4_096
WINDOW = 16_384


class Air:
    """A broker that takes what is published when told to, and the devices behind it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WINDOW_BYTES", WINDOW)
        values = np.random.default_rng(1).standard_normal(PARAMETERS).astype(np.float32)
        store = Store(directory / "store.sqlite3")
        self.models = Models(Manifest({"w": values}), store, "auto", 0.0)
        self.waiting: list[tuple[str, Message]] = []
        self.bytes_max = 0
        self.now_s = 0.0
        self.downloads = Downloads(self.models, store, self._publish, self._in_flight_bytes)
        self.downloads.chunk_bytes_max = CHUNK
        self.devices: dict[str, Download] = {}
        self.whole: set[str] = set()

    def _publish(self, message: Message, device: str) -> None:
        self.waiting.append((device, message))
        self.bytes_max = max(self.bytes_max, self._in_flight_bytes())

    def _in_flight_bytes(self) -> int:
        return sum(len(m.data) for _device, m in self.waiting if isinstance(m, Chunk))

    def ask(self, device: str) -> None:
        fresh = Download(0, self.models.digest, -1, self.models.schema)
        request = self.devices.setdefault(device, fresh).request(CHUNK)
        self.downloads.serve(device, request, self.now_s)

    def take(self, *, lost: bool = False) -> None:
        """The broker takes the oldest publication, and its device hears it, or not."""
        device, message = self.waiting.pop(0)
        download = self.devices[device]
        if not lost and isinstance(message, ModelOffer):
            download.announce(message)
        if not lost and isinstance(message, Chunk) and download.add(message):
            self.whole.add(device)
        self.downloads.send()


def test_many_devices_at_once_leave_no_more_waiting_than_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    air = Air(tmp_path, monkeypatch)
    names = [f"d{number}" for number in range(30)]
    for name in names:
        air.ask(name)
    while air.waiting:
        air.take()
    assert air.whole == set(names)
    assert air.bytes_max <= WINDOW + CHUNK
    assert len(air.downloads) == 0


@pytest.mark.parametrize("seed", range(5))
def test_downloads_end_although_packets_and_links_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    air, chance = Air(tmp_path, monkeypatch), random.Random(seed)
    names = [f"d{number}" for number in range(6)]
    for _ in range(200):
        air.now_s += 5.0
        for name in chance.sample(names, len(names)):
            if name not in air.whole:
                air.ask(name)
        while air.waiting:
            air.take(lost=chance.random() < 0.2)
            if chance.random() < 0.02:
                air.waiting.clear()
                air.downloads.on_link_down()
        if air.whole == set(names):
            break
    assert air.whole == set(names)
    assert len(air.downloads) == 0
    for download in air.devices.values():
        np.testing.assert_array_equal(download.tensors({})["w"], air.models.served["w"])


def test_who_asks_again_while_waiting_keeps_one_place_and_takes_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    air = Air(tmp_path, monkeypatch)
    for name in ("first", "second", "third"):
        air.ask(name)
    for _ in range(10):
        air.now_s += 5.0
        air.ask("third")
    assert len(air.downloads) == 3
    order: list[str] = []
    while air.waiting:
        air.take()
        order += sorted(air.whole - set(order))
    assert order == ["first", "second", "third"]


def test_a_flood_of_requests_holds_a_few_numbers_for_each_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    air = Air(tmp_path, monkeypatch)
    air.ask("honest")
    for number in range(500):
        air.now_s += 1.0
        air.downloads.serve("flood", FetchRequest(0, number, CHUNK), air.now_s)
        air.downloads.serve("flood", FetchRequest(number, -1, CHUNK), air.now_s)
    assert len(air.downloads) <= 3
    assert air.bytes_max <= WINDOW + CHUNK


def test_after_a_restart_of_both_only_what_is_missing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transfer id is the payload's digest: a coordinator that remembers nothing knows it."""
    air = Air(tmp_path, monkeypatch)
    parts = PartFiles(tmp_path / "models")

    def download() -> Download:
        return Download(0, air.models.digest, -1, air.models.schema, parts)

    air.devices["d"] = download()
    air.ask("d")
    sent: list[int] = []
    for _ in range(5):
        sent += [m.index for _d, m in air.waiting[:1] if isinstance(m, Chunk)]
        air.take()
    air.waiting.clear()  # and what was under way is lost

    air.downloads = Downloads(
        Models(Manifest(dict(air.models.served)), Store(tmp_path / "store.sqlite3"), "auto", 0.0),
        Store(tmp_path / "store.sqlite3"),
        air._publish,
        air._in_flight_bytes,
    )
    air.downloads.chunk_bytes_max = CHUNK
    air.devices["d"] = download()
    assert air.devices["d"].resume() == 4
    air.ask("d")
    again: list[int] = []
    while air.waiting:
        again += [m.index for _d, m in air.waiting[:1] if isinstance(m, Chunk)]
        air.take()
    assert air.whole == {"d"}
    assert sorted(sent + again) == list(range(len(sent) + len(again)))
    np.testing.assert_array_equal(air.devices["d"].tensors({})["w"], air.models.served["w"])
