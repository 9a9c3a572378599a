"""What devices say against a release: kept once, shown, and no longer asked for."""

from pathlib import Path

import pytest

from coordinator import Store
from coordinator.config import Rounds
from coordinator.registry import Registry
from coordinator.store import VetoRow
from coordinator.vetoes import Vetoes
from tests.support.loopback import Loopback
from wire import Report
from wire.errors import UnknownVersionError
from wire.messages import Release, ReleaseVeto

ROUNDS = Rounds(count=1, cohort=2, quorum=1.0, over_select=1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store.db")
    made.release("stable", 4, bytes(32), 1.0)
    return made


def test_a_veto_is_kept_once_for_a_device_and_a_version(store: Store) -> None:
    reports: list[Report] = []
    vetoes = Vetoes(store, reports.append)
    vetoes.take("d1", ReleaseVeto(4, "loss_is_worse", "2", {"loss_candidate": 2.0}), 10.0)
    vetoes.take("d1", ReleaseVeto(4, "another"), 11.0)
    vetoes.take("d2", ReleaseVeto(4, "check_failed"), 12.0)
    assert store.vetoes(4) == [
        VetoRow(4, "d1", "loss_is_worse", "2", {"loss_candidate": 2.0}, 10.0),
        VetoRow(4, "d2", "check_failed", "", {}, 12.0),
    ]
    assert Registry(store).vetoes() == {4: {"check_failed": 1, "loss_is_worse": 1}}
    assert [(r.what, r.detail, r.device) for r in reports] == [
        ("release_vetoed", "version 4: loss_is_worse", "d1"),
        ("release_vetoed", "version 4: check_failed", "d2"),
    ]
    assert store.has_vetoed("d1", 4)
    assert not store.has_vetoed("d3", 4)


def test_a_veto_of_what_was_never_released_is_dropped(store: Store) -> None:
    with pytest.raises(UnknownVersionError):
        Vetoes(store, lambda _report: None).take("d1", ReleaseVeto(5, "odd"), 1.0)
    assert store.vetoes_by_version() == {}


def test_a_device_that_has_said_no_is_not_offered_the_version_again(tmp_path: Path) -> None:
    world = Loopback(tmp_path, count=2, rounds=ROUNDS)
    world.start()
    world.play()
    store = world.coordinator.store
    released = store.released("stable")
    assert released is not None
    told: list[str] = []
    attendance = world.coordinator._attendance
    attendance._publish = lambda message, device: (
        told.append(device) if isinstance(message, Release) else None
    )
    names = sorted(store.devices())
    world.coordinator._on_message(names[0], ReleaseVeto(released["version"], "odd"), 1.0)
    for name in names:
        attendance._offer_release(name, 0)
        attendance._offer_release(name, released["version"])
    assert told == [names[1]]
