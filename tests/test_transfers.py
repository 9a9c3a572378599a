"""Transfers that are cut: by kill -9, by a broker that ends, by a device that roams."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.relay import Relay
from benchmarks.resume import resume_table
from coordinator import EmbeddedBroker
from coordinator.broker import available_kinds
from edge_sdk import JournalError, read_status
from fleet.toy import ToyTask
from tests.support.federated import Federated, TunedBroker
from tests.support.processes import environment, until

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(180),
    pytest.mark.skipif("mosquitto" not in available_kinds(), reason="needs Mosquitto"),
]
# 2 MB as float32, in chunks of 15 KB: 143 of them.
HIDDEN = 50_000
PAYLOAD_BYTES = 4 * (11 * HIDDEN + 2)
PACKET_BYTES = 16_384


@pytest.fixture
def close() -> Iterator[list[Any]]:
    """What a test has started; it ends in the opposite order."""
    started: list[Any] = []
    yield started
    for thing in reversed(started):
        thing.close() if hasattr(thing, "close") else thing.stop()


@pytest.fixture
def broker(close: list[Any]) -> EmbeddedBroker:
    running = TunedBroker({})
    close.append(running)
    running.start()
    return running


def large(directory: Path, broker: EmbeddedBroker, relay: Relay, close: list[Any]) -> Federated:
    federated = Federated(
        directory,
        broker.url,
        devices=1,
        rounds=1,
        deadline_s=120.0,
        task=ToyTask(hidden=HIDDEN),
        codec="raw",
        packet_bytes_max=PACKET_BYTES,
        device_broker=relay.url,
    )
    close.append(federated)
    return federated


def test_an_upload_of_8_mb_that_is_cut_at_half_costs_a_tenth_more_after_a_reboot() -> None:
    table = resume_table(quick=True)
    assert table["bytes_payload"] > 8_000_000
    assert table["ratio"] <= table["limit"] == 1.1


def test_a_device_that_roams_in_mid_upload_sends_what_is_missing(
    tmp_path: Path, broker: EmbeddedBroker, close: list[Any]
) -> None:
    relay = Relay(broker.port, cut_at_bytes=PAYLOAD_BYTES // 2)
    close.append(relay)
    federated = large(tmp_path, broker, relay, close)
    federated.enrolled(0).start()
    assert relay.was_cut.wait(60.0)
    relay.mend(source="127.0.0.2")
    until(lambda: federated.devices[0].model.version == 1, "the release")
    received_bytes = PAYLOAD_BYTES  # the release comes down by the same way, and is not counted
    assert relay.sent_bytes <= 1.1 * received_bytes
    assert relay.connections >= 2


def test_a_broker_that_is_killed_in_mid_upload_costs_a_few_chunks(
    tmp_path: Path, broker: EmbeddedBroker, close: list[Any]
) -> None:
    relay = Relay(broker.port, cut_at_bytes=PAYLOAD_BYTES // 2)
    close.append(relay)
    federated = large(tmp_path, broker, relay, close)
    federated.enrolled(0).start()
    assert relay.was_cut.wait(60.0)
    broker.kill()
    relay.mend()
    time.sleep(0.5)
    broker.start()
    until(lambda: federated.devices[0].model.version == 1, "the release")
    # What the broker had acknowledged and not passed on is sent again, too.
    assert relay.sent_bytes <= 1.25 * PAYLOAD_BYTES


def test_a_download_that_kill_9_cuts_at_half_goes_on_from_there(
    tmp_path: Path, broker: EmbeddedBroker, close: list[Any]
) -> None:
    # No faster than the device reads: what a kernel holds of it is lost with the process.
    relay = Relay(broker.port, cut_at_received_bytes=PAYLOAD_BYTES // 2, bytes_per_s=4e6)
    close.append(relay)
    federated = Federated(
        tmp_path,
        broker.url,
        devices=2,
        cohort=1,
        rounds=1,
        deadline_s=120.0,
        task=ToyTask(hidden=HIDDEN),
        codec="raw",
        packet_bytes_max=PACKET_BYTES,
    )
    close.append(federated)
    federated.enrolled(0).start()
    until(lambda: federated.devices[0].model.version == 1, "a version to download")
    (tmp_path / "large.py").write_text(
        f"from fleet.toy import ToyTask\ntask = ToyTask(hidden={HIDDEN})\n"
    )
    first = _device(tmp_path, relay)
    assert relay.was_cut.wait(60.0)
    first.kill()
    first.wait()
    parts = list((tmp_path / "late" / "models").glob("part-*"))
    assert len(parts) == 1
    relay.mend()
    again = _device(tmp_path, relay)
    try:
        until(lambda: _model_version(tmp_path / "late") == 1, "the release")
    finally:
        again.kill()
        again.wait()
    assert relay.received_bytes <= 1.1 * PAYLOAD_BYTES
    assert not list((tmp_path / "late" / "models").glob("part-*"))


def _device(directory: Path, relay: Relay) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "potluck", "device", "run", "--task", "large:task"),
            *("--token-file", "tokens", "--state-dir", "late", "--broker", relay.url),
        ],
        cwd=directory,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _model_version(state_dir: Path) -> int:
    try:
        return read_status(state_dir).model_version
    except JournalError:
        return -1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process")
def test_an_upload_holds_a_window_of_chunks_in_memory(
    tmp_path: Path, broker: EmbeddedBroker, close: list[Any]
) -> None:
    """8 MB leave over a link so slow that all of it would wait in memory."""
    relay = Relay(broker.port, bytes_per_s=4e6)
    close.append(relay)
    federated = Federated(
        tmp_path,
        broker.url,
        devices=1,
        rounds=1,
        deadline_s=120.0,
        task=ToyTask(hidden=4 * HIDDEN),
        codec="raw",
        device_broker=relay.url,
    )
    close.append(federated)
    (tmp_path / "large.py").write_text(
        f"from fleet.toy import ToyTask\ntask = ToyTask(hidden={4 * HIDDEN})\n"
    )
    device = _device(tmp_path, relay)
    try:
        until(lambda: relay.sent_bytes > 1_000_000, "the upload")
        before_bytes, peak_bytes = _memory_bytes(device.pid), 0
        while relay.sent_bytes < 3 * PAYLOAD_BYTES:
            peak_bytes = max(peak_bytes, _memory_bytes(device.pid))
            time.sleep(0.02)
        assert peak_bytes - before_bytes < 4_000_000
    finally:
        device.kill()
        device.wait()


def _memory_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
