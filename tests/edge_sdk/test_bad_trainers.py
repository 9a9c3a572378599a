"""What an app's trainer may do: anything. The reason is known, the model stays, the app goes on."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import Coordinator, EmbeddedBroker
from edge_sdk import Device, DeviceInfo, Model, Policy, TrainingStoppedError, TrainResult
from edge_sdk._training import Outcome, TrainingThread
from edge_sdk.signals import Train, TrainingFailed
from edge_sdk.user_code import blamed
from edge_sdk.work import TrainingWork
from fleet.toy import ToyTask
from tests.support.federated import Federated
from tests.support.processes import ROOT, environment, until
from wire import Plan, Report

Stop = Callable[[], bool]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class PrivateExit(BaseException):
    pass


def recurse(number: int = 0) -> int:
    return recurse(number + 1) + 1


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


class Task(ToyTask):
    """Trains in whatever way it is told to."""

    def __init__(self, act: Callable[[Stop], object]) -> None:
        super().__init__()
        self.act = act

    def trainer(self, device: DeviceInfo) -> Any:
        trainer, task = super().trainer(device), self

        class Bad:
            evaluate = staticmethod(trainer.evaluate)

            def train(self, *_: object, stop: Stop) -> Any:
                return task.act(stop)

        return Bad()


def work_of(act: Callable[[], object]) -> TrainingWork:
    task = Task(lambda _stop: act())
    manifest = task.model()
    return TrainingWork(
        order=Train(1, 0, Plan(), "ecq_sr", bytes(16), 4_096),
        manifest=manifest,
        base=manifest.tensors,
        personal={},
        make_trainer=lambda: task.trainer(DeviceInfo()),
    )


@pytest.mark.parametrize(
    "act",
    [
        raising(KeyboardInterrupt()),
        raising(GeneratorExit()),
        raising(PrivateExit("x")),
        raising(SystemExit(3)),
        raising(UnspeakableError()),
        raising(ValueError("long " * 10**6)),
        raising(ValueError("\ud800 half a letter")),
        recurse,
        lambda: (yield),
        lambda: Model(0, {}),
        lambda: [1, 2, 3],
        lambda: TrainResult({"w0": object()}, 3),  # type: ignore[dict-item] # as a user might
        lambda: TrainResult({}, "many"),  # type: ignore[arg-type] # as a user might
        lambda: TrainResult(None, 1),  # type: ignore[arg-type] # as a user might
    ],
)
def test_whatever_a_thread_of_user_code_raises_or_returns_comes_back_as_a_reason(
    act: Callable[[], object],
) -> None:
    done: list[Outcome] = []
    thread = TrainingThread(lambda _work, event: done.append(event))
    thread.start(work_of(act))
    left_over = thread.left_over
    if left_over is not None:
        left_over.join(10.0)
    (event,) = done
    assert isinstance(event, TrainingFailed)
    assert event.reason == "trainer_failed"
    assert len(event.detail) <= 160
    event.detail.encode()
    assert not thread.busy


def test_an_error_that_cannot_be_printed_is_named() -> None:
    assert blamed(UnspeakableError()) == ("trainer_failed", "UnspeakableError")


def test_a_thread_that_does_not_stop_is_said_to_hang_once_and_to_be_back_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_sdk._training.HUNG_S", 5.0)
    release = threading.Event()
    thread = TrainingThread(lambda *_: None)
    thread.start(work_of(release.wait))
    assert not thread.look(0.0)
    thread.stop()
    assert [thread.look(float(second)) for second in range(8)] == [*[False] * 5, True, False, False]
    assert thread.hung
    # Another start of the device, in the same process.
    again = TrainingThread(lambda *_: None, left_over=thread.left_over)
    assert again.hung
    assert again.busy
    release.set()
    until(lambda: not again.busy, "its end")
    assert again.look(100.0)
    assert not again.hung


# -- the whole device ------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def federated(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Federated]:
    running = Federated(tmp_path, broker.url, deadline_s=3.0, rounds=50)
    yield running
    running.close()


def lost(federated: Federated, reason: str) -> bool:
    return any(r.what == "invitee_lost" and r.detail == reason for r in federated.reports)


def joined(federated: Federated, task: Task, **options: Any) -> tuple[Device, list[Report]]:
    reports: list[Report] = []
    device = federated.device(1, task, on_report=reports.append, **options)
    device.enroll(federated.tokens)
    device.start()
    return device, reports


@pytest.mark.live
@pytest.mark.timeout(120)
def test_a_trainer_that_hangs_holds_up_neither_stop_nor_leave_nor_the_app(
    federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk._training.HUNG_S", 1.0)
    release, begun = threading.Event(), []

    def hang(_stop: Stop) -> object:
        begun.append(time.monotonic())
        release.wait()
        raise TrainingStoppedError("at last")

    told: list[str] = []
    monkeypatch.setattr(Coordinator, "_failed", lambda *args: told.append(args[2].reason))
    device, reports = joined(federated, Task(hang))
    # The round's deadline is three seconds, and nobody looks at `stop`.
    until(lambda: Report("trainer_hung", "round 1") in reports, "the watchdog")
    assert Report("discarded", "deadline_passed") in reports
    until(lambda: device.status.waits == "trainer_hung", "the reason to be kept")
    until(lambda: "trainer_hung" in told, "the coordinator to be told")
    assert told[0] == "deadline_passed"
    assert device.model.version == 0
    stopped_s = time.monotonic()
    device.stop()
    device.start()
    until(lambda: device.status.waits == "trainer_hung", "the second start to know of it")
    assert device.leave()
    assert time.monotonic() - stopped_s < 10.0
    assert len(begun) == 1
    release.set()


@pytest.mark.live
@pytest.mark.timeout(120)
def test_a_trainer_that_comes_back_is_used_again(
    federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk._training.HUNG_S", 0.5)
    monkeypatch.setattr("edge_sdk.session.FAILURE_PAUSE_S", 0.5)
    release, begun = threading.Event(), []

    def hang(_stop: Stop) -> object:
        begun.append(1)
        if len(begun) == 1:
            release.wait()
        raise TrainingStoppedError("at last")

    device, reports = joined(federated, Task(hang))
    until(lambda: Report("trainer_hung", "round 1") in reports, "the watchdog")
    release.set()
    until(lambda: any(r.what == "trainer_back" for r in reports), "its return")
    until(lambda: len(begun) > 1, "the next round's training")
    device.stop()


@pytest.mark.live
def test_the_interpreter_ends_although_a_trainer_does_not() -> None:
    script = """
import threading, time
from edge_sdk._training import TrainingThread, Outcome
from tests.edge_sdk.test_bad_trainers import work_of
thread = TrainingThread(lambda *_: None)
thread.start(work_of(lambda: time.sleep(3600)))
print("over")
"""
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "over\n")
    assert time.monotonic() - began_s < 20.0


@pytest.mark.live
@pytest.mark.timeout(60)
def test_a_trainer_that_grows_is_stopped_at_the_owners_bound(federated: Federated) -> None:
    grown: list[bytes] = []

    def grow(stop: Stop) -> object:
        while not stop():
            if len(grown) < 64:
                grown.append(bytes(b"x" * (4 << 20)))
            time.sleep(0.02)
        grown.clear()
        raise TrainingStoppedError("stopped")

    device, reports = joined(
        federated, Task(grow), policy=Policy(training_memory_bytes_max=32 << 20)
    )
    until(lambda: Report("discarded", "training_memory") in reports, "the bound to be kept")
    until(lambda: lost(federated, "training_memory"), "the coordinator to be told")
    assert device.running
    assert device.model.version == 0
    device.stop()
