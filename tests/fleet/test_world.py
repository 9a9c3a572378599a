"""Virtual time: the same seed, the same world."""

import subprocess
import sys

import pytest

from coordinator.config import Federation, FederationConfig, Rounds
from fleet import FleetRun, StubCrypto, run_virtual
from fleet.nemesis import MODES, Mode, schedule, shrink, try_seed
from fleet.toy import ToyTask
from fleet.world import World
from insight import RunRecord
from tests.support.processes import ROOT, environment

ONE = """
from fleet.nemesis import try_seed
print(try_seed(7, "safety").trace_digest)
"""


def virtual(seed: int) -> RunRecord:
    config = FederationConfig(
        federation=Federation(name="toy"),
        rounds=Rounds(count=4, cohort=6, deadline_s=120.0),
    )
    run = FleetRun(config=config, task=ToyTask(), count=20, seed=seed, crypto=StubCrypto())
    return run_virtual(run)


def test_events_happen_in_order_of_time_and_then_of_planning() -> None:
    world, happened = World(0), list[str]()
    for name, at_s in (("c", 2.0), ("a", 1.0), ("b", 1.0), ("never", 9.0)):
        world.after(at_s, name, lambda name=name: happened.append(name))  # type: ignore[misc] # bound at once
    world.run(5.0)
    assert happened == ["a", "b", "c"]
    assert world.now_s == 5.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    one, two, other = virtual(1), virtual(1), virtual(2)
    assert one.totals.trace_digest == two.totals.trace_digest
    assert one.totals.model_digest == two.totals.model_digest
    assert one.totals.trace_digest != other.totals.trace_digest
    assert [r.status for r in one.rounds] == ["committed"] * 4


@pytest.mark.live
def test_another_process_with_one_core_sees_the_same_trace() -> None:
    pinned = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})" + ONE
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment() | extra,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for script, extra in ((ONE, {"PYTHONHASHSEED": "1"}), (pinned, {"PYTHONHASHSEED": "2"}))
    }
    assert traces == {try_seed(7, "safety").trace_digest + "\n"}


def test_a_schedule_follows_from_its_seed() -> None:
    assert schedule(3, "safety", 20, 9) == schedule(3, "safety", 20, 9)
    assert schedule(3, "safety", 20, 9) != schedule(4, "safety", 20, 9)
    assert {event.device for event in schedule(3, "liveness", 20, 9)} == set(range(9, 20))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", range(20))
@pytest.mark.parametrize("mode", MODES)
def test_no_promise_is_broken_whatever_breaks(block: int, mode: Mode) -> None:
    for seed in range(10 * block, 10 * block + 10):
        trial = try_seed(seed, mode)
        assert trial.violation is None, repr(shrink(trial))
