"""The rules act before and during training: a fake clock, a fake trainer, a real journal."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_sdk import Conditions, EvalResult, Model, Policy, TrainingStoppedError, TrainResult
from edge_sdk._gatekeeper import Gatekeeper, Moment
from edge_sdk.energy import Energy
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import GATE_EVERY_S
from edge_sdk.signals import GateClosed, GateOpened, Train, TrainingFailed
from edge_sdk.trainer import Stop
from edge_sdk.work import TrainingWork
from wire import Manifest, Plan

BATCH_S = 0.1
STOPS_WITHIN_S = 1.0
NOON_S = 12 * 3_600.0


class Bench:
    """One device's gatekeeper and a clock that only moves when it is told to."""

    def __init__(self, directory: Path, policy: Policy) -> None:
        self.now_s = 0.0
        self.conditions: Callable[[], Conditions] = Conditions
        self.traffic = (0, 0)
        self.closed: list[tuple[float, str]] = []
        self.looks = 0
        self.work: TrainingWork | None = None
        self.journal = SqliteJournal(directory)
        self.keeper = Gatekeeper(
            policy=policy,
            conditions=self._ask,
            journal=self.journal,
            energy=Energy(training_w=4.0, up_j_per_mb=1.0, down_j_per_mb=1.0),
            traffic=lambda: self.traffic,
        )

    def _ask(self) -> Conditions:
        self.looks += 1
        return self.conditions()

    @property
    def is_closed(self) -> bool:
        return isinstance(self.keeper.gate, GateClosed)

    def moment(self) -> Moment:
        return Moment(self.now_s, self.now_s, (NOON_S + self.now_s) % 86_400.0)

    def tick(self, seconds: float = BATCH_S) -> None:
        """Time passes, and the device's loop looks when it is due."""
        self.now_s += seconds
        if self.now_s < self.keeper.due_s:
            return
        gate = self.keeper.look(self.moment())
        if isinstance(gate, GateClosed):
            self.closed.append((self.now_s, gate.reason))
            if self.work is not None:
                self.work.stop()

    def train(self, seconds: float) -> float | None:
        """Train for so long; returns when the trainer was stopped, None if it came to its end."""
        self.keeper.work_begins(self.now_s)
        self.work = work_of(self, seconds)
        event = self.work.run()
        finished = not isinstance(event, TrainingFailed)
        self.keeper.work_ends(self.now_s, trained=True, finished=finished)
        self.work = None
        return None if finished else self.now_s


class Trainer:
    """Batches of `BATCH_S`."""

    def __init__(self, bench: Bench, seconds: float) -> None:
        self._bench = bench
        self._batches = round(seconds / BATCH_S)

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:  # noqa: ARG002 - the Protocol's
        for _ in range(self._batches):
            if stop():
                raise TrainingStoppedError("stopped")
            self._bench.tick()
        return TrainResult(model.tensors, 3)

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        return EvalResult(0.0, 0)


def work_of(bench: Bench, seconds: float) -> TrainingWork:
    manifest = Manifest({"w": np.zeros(3, np.float32)})
    return TrainingWork(
        order=Train(1, 0, Plan(), "raw", b"u" * 16, 1_000),
        manifest=manifest,
        base=dict(manifest.tensors),
        personal={},
        make_trainer=lambda: Trainer(bench, seconds),
    )


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Policy], Bench]]:
    benches = []

    def make(policy: Policy) -> Bench:
        bench = Bench(tmp_path, policy)
        benches.append(bench)
        bench.tick(0.0)
        return bench

    yield make
    for bench in benches:
        bench.journal.close()


Make = Callable[[Policy], Bench]


@pytest.mark.parametrize(
    ("policy", "bad", "why"),
    [
        (Policy(), Conditions(charging=False, battery_fraction=0.1), "battery_low"),
        (Policy(require_charging=True), Conditions(charging=False), "not_charging"),
        (Policy(), Conditions(metered=True), "metered"),
        (Policy(), Conditions(temperature_c=90.0), "too_hot"),
        (Policy(cpu_load_max=0.5), Conditions(cpu_load=0.9), "cpu_busy"),
        (Policy(), Conditions(free_memory_bytes=0), "memory_low"),
        (Policy(), Conditions(free_disk_bytes=0), "disk_low"),
    ],
)
def test_training_stops_within_a_second_of_a_condition(
    make: Make, policy: Policy, bad: Conditions, why: str
) -> None:
    bench = make(policy)
    bench.tick(GATE_EVERY_S - 0.01)
    turns_bad_s = bench.now_s + 7.3
    bench.conditions = lambda: Conditions() if bench.now_s < turns_bad_s else bad
    stopped_at_s = bench.train(60.0)
    assert stopped_at_s is not None
    assert turns_bad_s <= stopped_at_s <= turns_bad_s + STOPS_WITHIN_S
    assert [reason for _, reason in bench.closed] == [why]
    assert bench.journal.waits == why


def test_a_source_that_fails_while_something_is_trained_stops_it(make: Make) -> None:
    bench = make(Policy())

    def fail() -> Conditions:
        raise OSError("the sensor is gone")

    bench.conditions = fail
    stopped_at_s = bench.train(60.0)
    assert stopped_at_s is not None
    assert stopped_at_s <= STOPS_WITHIN_S
    assert bench.closed[0][1] == "conditions_unknown"


@pytest.mark.parametrize(
    ("policy", "at_s", "why"),
    [
        (Policy(training_s_per_day_max=20.0), 20.0, "training_budget_spent"),
        (Policy(joules_per_day_max=60.0), 15.0, "energy_budget_spent"),
    ],
)
def test_training_that_uses_a_budget_up_stops_within_a_second(
    make: Make, policy: Policy, at_s: float, why: str
) -> None:
    bench = make(policy)
    stopped_at_s = bench.train(60.0)
    assert stopped_at_s is not None
    assert at_s <= stopped_at_s <= at_s + STOPS_WITHIN_S
    assert bench.closed[0][1] == why
    bench.tick(3_600.0)
    assert bench.is_closed
    bench.tick(86_400.0)
    assert not bench.is_closed


def test_a_spent_budget_is_spent_after_kill_9_and_a_reboot(make: Make) -> None:
    policy = Policy(training_s_per_day_max=20.0)
    bench = make(policy)
    bench.train(60.0)
    again = make(policy)
    again.tick(0.0)
    assert again.keeper.gate == GateClosed("training_budget_spent")


def test_a_device_that_is_killed_again_and_again_stays_within_its_budget(make: Make) -> None:
    policy, trained_s = Policy(training_s_per_day_max=20.0), 0.0
    for _ in range(40):
        bench = make(policy)
        if isinstance(bench.keeper.gate, GateOpened):
            bench.keeper.work_begins(bench.now_s)
            for _ in range(11):
                bench.tick()
            trained_s += bench.now_s
        bench.journal.close()
    # A crash forgets less than a 64th, and what came since the last look; one per life.
    assert 20.0 <= trained_s <= 40.0


def test_an_apps_meter_replaces_the_estimate(make: Make) -> None:
    bench = make(Policy())
    bench.conditions = lambda: Conditions(power_w=0.5)
    bench.tick(GATE_EVERY_S)
    bench.train(10.0)
    bench.traffic = (1_500_000, 500_000)
    spent = bench.keeper.spend(bench.moment(), at_once=True)
    assert spent.traffic_bytes == 2_000_000
    assert spent.training_s == pytest.approx(10.0)
    assert spent.joules == pytest.approx(10.0 * 0.5 + 2.0)


def test_what_work_took_is_known_for_the_next(make: Make) -> None:
    bench = make(Policy(training_s_per_day_max=100.0))
    assert bench.train(10.0) is None
    means = bench.keeper.means()
    assert means.training.joules == pytest.approx(40.0)
    assert means.training.training_s == pytest.approx(10.0)
    assert means.room.training_s == pytest.approx(90.0, abs=0.6)
    assert means.room.traffic_bytes == math.inf


def test_rules_are_looked_at_rarely_while_nothing_is_trained(make: Make) -> None:
    bench = make(Policy())
    before = bench.looks
    for _ in range(600):
        bench.tick(0.1)
    assert bench.looks - before <= 60.0 / GATE_EVERY_S
    before = bench.looks
    bench.train(10.0)
    assert 10 <= bench.looks - before <= 21


def test_quiet_hours_stop_training_and_let_it_begin_again(make: Make) -> None:
    bench = make(Policy(quiet_hours=("12:01-13:00",)))
    stopped_at_s = bench.train(300.0)
    assert stopped_at_s is not None
    assert 60.0 <= stopped_at_s <= 60.0 + STOPS_WITHIN_S
    assert bench.closed[0][1] == "quiet_hours"
    for _ in range(720):
        bench.tick(5.0)
    assert isinstance(bench.keeper.gate, GateOpened)
