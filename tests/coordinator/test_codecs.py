from pathlib import Path

import msgspec
import pytest

from coordinator.config import Rounds, Uplink
from coordinator.signals import RoundOpened
from quantization import CODEC_NAMES
from tests.support.loopback import Loopback

pytestmark = pytest.mark.slow

ROUNDS = Rounds(count=3, cohort=4, quorum=1.0, deadline_s=60.0)


def play(directory: Path, uplink: Uplink) -> Loopback:
    loopback = Loopback(directory, count=4, rounds=ROUNDS, uplink=uplink)
    loopback.start()
    loopback.play()
    return loopback


def codec_asked(loopback: Loopback) -> str:
    rows = loopback.coordinator.store._db.execute("SELECT record FROM rounds")
    (codec,) = {msgspec.msgpack.decode(row["record"], type=RoundOpened).codec for row in rows}
    return codec


@pytest.mark.parametrize("codec", [*CODEC_NAMES, "ecq_sr:16", "auto:0.3", "topk_sign:0.05"])
def test_rounds_are_played_with_every_codec(tmp_path: Path, codec: str) -> None:
    loopback = play(tmp_path, Uplink(codec))
    assert loopback.coordinator.models.version == 3
    assert codec_asked(loopback) == ("auto:1.2" if codec == "auto" else codec)
    assert loopback.incidents() == {}


def test_a_bound_on_bytes_reaches_the_devices_and_they_keep_to_it(tmp_path: Path) -> None:
    free, bound = play(tmp_path / "free", Uplink()), play(tmp_path / "bound", Uplink("auto", 45))
    assert codec_asked(bound) == "auto:1.2:45"
    sizes = [
        [row.payload_bytes for row in run.coordinator.store.updates()] for run in (free, bound)
    ]
    assert max(sizes[0]) > 45
    assert len(sizes[1]) == 12
    assert max(sizes[1]) <= 45


def test_a_bound_that_no_codec_keeps_is_declined_by_every_device(tmp_path: Path) -> None:
    loopback = play(tmp_path, Uplink("auto", 20))
    assert loopback.coordinator.models.version == 0
    declines = loopback.coordinator.store.declines(1)
    assert set(declines.values()) == {"payload_budget"}


def test_devices_keep_what_topk_sign_left_out_and_nothing_of_other_codecs(tmp_path: Path) -> None:
    fed_back = play(tmp_path / "topk", Uplink("topk_sign"))
    for device in fed_back.devices:
        assert any(values.any() for values in device._shelf.residual().values())
    for device in play(tmp_path / "auto", Uplink()).devices:
        assert device._shelf.residual() == {}
