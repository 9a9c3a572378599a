"""Evaluation rounds: who is asked, whose word counts how much, and that training does not wait."""

from pathlib import Path

import pytest

from coordinator.config import FederationConfig, Rounds
from coordinator.evaluating import Evaluations
from coordinator.evaluation import HOLDOUT_WEIGHT_MAX, LOSS_MAX, pooled_evaluations
from coordinator.leases import Leases
from coordinator.signals import RoundOpened
from coordinator.store import DiskFullError, Store
from edge_sdk import EvalResult
from tests.support.loopback import Loopback
from wire import Plan, Report, frames
from wire.errors import NotInvitedError, StaleRoundError
from wire.messages import Available, EvaluateInvite, EvaluationReport, Message

DIGEST = bytes(32)
ROUNDS = Rounds(deadline_s=60.0, quorum=0.5, evaluate_every=2, evaluate_cohort=3)


class Bench:
    """Evaluations with everything around them."""

    def __init__(self, directory: Path, *, rounds: Rounds = ROUNDS, old: str = "") -> None:
        self.store = Store(directory / "store.db")
        self.leases = Leases()
        self.sent: list[tuple[str, Message]] = []
        self.reports: list[Report] = []
        self.evaluations = Evaluations(
            config=FederationConfig(rounds=rounds),
            store=self.store,
            leases=self.leases,
            understands=lambda device: device != old,
            publish=lambda message, device: self.sent.append((device, message)),
            observe=self.reports.append,
        )
        self.store.open_round(
            RoundOpened(4, 3, DIGEST, Plan(), "raw", 3, 2, {}, 0.0, 60.0, 1_000, 1_000)
        )

    def begin(self, *there: str, trained: tuple[str, ...] = ()) -> None:
        for number, device in enumerate(there):
            message = Available(number + 1, 600.0, 0, 0, DIGEST)
            self.leases.check_in(device, message, 0.0)
        self.evaluations.begin(4, 4, DIGEST, trained, 0.0)
        self.evaluations.ask(self.leases.valid(0.0), 10.0)

    def take(self, device: str, loss: float, accuracy: float, num_examples: int = 10) -> None:
        report = EvaluationReport(4, 4, loss, num_examples, {"accuracy": accuracy})
        self.evaluations.take(device, report, 20.0)

    @property
    def asked(self) -> list[str]:
        return [device for device, message in self.sent if isinstance(message, EvaluateInvite)]

    @property
    def noted(self) -> str | None:
        row = self.store.round(4)
        assert row is not None
        source: str | None = row["metrics_source"]
        return source


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_who_trained_on_a_version_is_not_asked_nor_who_would_not_understand(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, old="d3")
    bench.begin("d1", "d2", "d3", "d4", "d5", "d6", trained=("d1",))
    assert bench.asked == ["d2", "d4", "d5"]
    assert [lease.device for lease in bench.leases.valid(1.0)] == ["d1", "d3", "d6"]
    (_, message), *_ = bench.sent
    assert isinstance(message, EvaluateInvite)
    assert (message.check_in, message.round, message.version, message.deadline_s) == (2, 4, 4, 50.0)


def test_somebody_else_is_asked_for_who_cannot(bench: Bench) -> None:
    bench.begin("d1", "d2", "d3", "d4")
    assert bench.evaluations.wants == 0
    bench.evaluations.lost("d1", 3)
    assert bench.evaluations.wants == 0
    bench.evaluations.lost("d1", 4)
    assert bench.evaluations.wants == 1
    bench.evaluations.ask(bench.leases.valid(10.0), 10.0)
    assert bench.asked == ["d1", "d2", "d3", "d4"]
    bench.evaluations.lost("d2")
    bench.evaluations.ask(bench.leases.valid(10.0), 10.0)
    assert bench.asked == ["d1", "d2", "d3", "d4"]


def test_when_the_cohort_has_reported_its_mean_is_the_rounds(bench: Bench) -> None:
    bench.begin("d1", "d2", "d3")
    bench.take("d1", 0.5, 0.9, 30)
    bench.take("d2", 1.5, 0.5, 10)
    assert bench.evaluations.is_open
    bench.take("d3", 0.5, 0.9, 10)
    assert (bench.noted, bench.evaluations.is_open) == ("devices", False)
    assert pooled_evaluations(bench.store.evaluations(4)) == {
        "accuracy": pytest.approx(0.82),
        "loss": pytest.approx(0.7),
    }


def test_a_repeated_report_counts_once(bench: Bench) -> None:
    bench.begin("d1", "d2", "d3")
    for _ in range(5):
        bench.take("d1", 0.5, 0.9)
    assert bench.evaluations.is_open
    assert len(bench.store.evaluations(4)) == 1


def test_at_the_deadline_the_quorum_is_enough_and_less_says_nothing(bench: Bench) -> None:
    bench.begin("d1", "d2", "d3")
    bench.take("d1", 0.5, 0.9)
    bench.evaluations.close()
    assert (bench.noted, bench.reports[-1].what) == (None, "evaluation_without_quorum")
    bench.begin("d1", "d2", "d3")
    bench.take("d2", 0.5, 0.9)
    bench.take("d3", 0.5, 0.9)
    bench.evaluations.close()
    assert (bench.noted, bench.reports[-1].what) == ("devices", "evaluated")
    bench.evaluations.close()
    bench.take("d1", 0.5, 0.1)  # too late, and nobody's fault
    assert len(bench.store.evaluations(4)) == 3  # the one of before is the same device's word


def test_reports_that_nobody_asked_for_are_typed_errors(bench: Bench) -> None:
    with pytest.raises(StaleRoundError):
        bench.take("d1", 0.5, 0.9)
    bench.begin("d1")
    with pytest.raises(NotInvitedError):
        bench.take("d2", 0.5, 0.9)
    with pytest.raises(StaleRoundError):
        bench.evaluations.take("d1", EvaluationReport(4, 3, 0.5, 1), 20.0)


def test_what_a_hostile_device_claims_is_bounded(bench: Bench) -> None:
    bench.begin("d1", "d2", "d3")
    bench.take("d1", -1e300, -5.0, 2**53)
    bench.take("d2", 1e300, 5.0, 2**53)
    bench.take("d3", 0.5, 0.9, 1_000)
    rows = bench.store.evaluations(4)
    assert [(row["loss"], row["accuracy"]) for row in rows] == [
        (0.0, 0.0),
        (LOSS_MAX, 1.0),
        (0.5, 0.9),
    ]
    pooled = pooled_evaluations(rows)
    assert pooled["accuracy"] == pytest.approx(1.9 / 3)
    assert HOLDOUT_WEIGHT_MAX == 1_000.0


def test_accuracy_may_be_missing(bench: Bench) -> None:
    bench.begin("d1")
    bench.evaluations.take("d1", EvaluationReport(4, 4, 0.5, 10), 20.0)
    assert pooled_evaluations(bench.store.evaluations(4)) == {"loss": 0.5}
    assert pooled_evaluations([]) == {}


def test_a_clock_that_is_set_leaves_the_time_that_is_left(bench: Bench) -> None:
    bench.evaluations.on_clock_step(1e6)
    assert bench.evaluations.wants == 0
    bench.begin("d1")
    bench.evaluations.on_clock_step(1e6)
    assert bench.evaluations.over_at_s == 1e6 + 60.0


def test_what_is_measured_ends_with_what_it_has_when_the_next_begins(bench: Bench) -> None:
    bench.begin("d1", "d2", "d3")
    bench.take("d1", 0.5, 0.9)
    bench.take("d2", 0.5, 0.9)
    bench.begin("d1", "d2", "d3")
    assert bench.noted == "devices"


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4])])
def test_every_so_many_versions_are_measured(tmp_path: Path, every: int, due: list[int]) -> None:
    evaluations = Bench(tmp_path, rounds=Rounds(evaluate_every=every)).evaluations
    assert [version for version in range(1, 5) if evaluations.due(version)] == due


# -- with real devices -----------------------------------------------------------------------------


def played(directory: Path, *, mode: str, evaluator: object = None) -> Loopback:
    rounds = Rounds(
        mode=mode,  # type: ignore[arg-type] # one of two
        count=4,
        cohort=3,
        over_select=1.0,
        quorum=0.6,
        deadline_s=60.0,
        evaluate_every=2,
        evaluate_cohort=3,
    )
    loopback = Loopback(directory, count=10, rounds=rounds, evaluator=evaluator)
    loopback.start()
    loopback.play()
    return loopback


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_devices_that_did_not_train_measure_every_second_version(tmp_path: Path, mode: str) -> None:
    loopback = played(tmp_path, mode=mode)
    store = loopback.coordinator.store
    assert loopback.coordinator.finished
    assert [row["metrics_source"] for row in store.rounds()] == [
        "training",
        "devices",
        "training",
        "devices",
    ]
    for version in (2, 4):
        trained = {row.device for row in store.updates(version) if row.counted}
        measured = {row["device"] for row in store.evaluations(version)}
        assert len(measured) == 3
        assert not measured & trained
    assert store.evaluations(1) == store.evaluations(3) == []


class Judge:
    """A task's own test data."""

    def evaluate(self, *_: object, **__: object) -> EvalResult:
        return EvalResult(0.1, 100, {"accuracy": 0.99})


def test_the_tasks_own_test_data_has_the_last_word(tmp_path: Path) -> None:
    loopback = played(tmp_path, mode="sync", evaluator=Judge())
    store = loopback.coordinator.store
    assert {row["metrics_source"] for row in store.rounds()} == {"test"}
    assert store.evaluations(4) != []


def test_a_device_of_version_1_0_is_never_asked(tmp_path: Path) -> None:
    rounds = Rounds(count=2, cohort=3, over_select=1.0, quorum=0.6, evaluate_every=1)
    loopback = Loopback(tmp_path, count=6, rounds=rounds)
    loopback.coordinator._attendance.minors |= dict.fromkeys(loopback.coordinator._devices, 0)
    real = loopback.coordinator.on_frame
    asked = []

    def of_old(topic: str, data: bytes, now_s: float) -> None:
        real(topic, data, now_s)
        loopback.coordinator._attendance.minors.clear()

    def watch(topic: str, data: bytes) -> list[bytes]:
        if topic.endswith("/down") and frames.parse(data).kind == EvaluateInvite.KIND:
            asked.append(topic)
        return [data]

    loopback.coordinator.on_frame = of_old  # type: ignore[method-assign] # as if they were old
    loopback.tamper = watch
    loopback.start()
    loopback.play()
    assert loopback.coordinator.finished
    assert asked == []


def test_without_room_an_evaluation_ends_and_so_does_what_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise DiskFullError("full")

    monkeypatch.setattr(bench.store, "note_round", no_room)
    bench.begin("d1", "d2", "d3")
    bench.take("d2", 0.5, 0.9)
    bench.take("d3", 0.5, 0.9)
    bench.evaluations.close()
    assert not bench.evaluations.is_open
    assert bench.reports[-1].what == "evaluation_failed"
