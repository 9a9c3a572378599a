"""From a release to the app: whole or not at all, checked first, and never beside training."""

import functools
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import (
    EvalResult,
    Model,
    NumpyTrainer,
    ReleaseCheck,
    TrainingStoppedError,
    Veto,
    no_worse_than,
)
from edge_sdk.adoption import CHECK_AGAIN_S, RELEASE_CHECK, Adoption
from edge_sdk.driver import DeviceDriver
from edge_sdk.journal import Enrolment, SqliteJournal
from edge_sdk.models import FileShelf
from edge_sdk.release_check import CHECK_S_MAX, Checked, CheckFailed, CheckWork
from edge_sdk.signals import Adopt, GateClosed, GateOpened, Vetoed
from edge_sdk.work import Work, gave_up, round_of
from fleet import StubCrypto
from fleet.toy import ToyTask
from wire import frames, tensors_digest
from wire.messages import Available, Declined, FetchRequest, Release, ReleaseVeto
from wire.topics import Address, parse

ADOPT = Adopt(7, bytes(32), "stable")
NEWER = Adopt(8, bytes(32), "stable")
MODEL = Model(7, {"w": np.zeros(2, np.float32)})


def refuse(_candidate: Model, _current: Model) -> bool:
    return False


class Bench:
    """An adoption and what it starts."""

    def __init__(self, check: ReleaseCheck | None = refuse, *, at_once: bool = False) -> None:
        self.timers: dict[str, float] = {}
        self.started: list[Any] = []
        self.adoption = Adoption(
            check=check,
            at_once=at_once,
            make_trainer=ToyTask().trainer,  # type: ignore[arg-type] # none of these is called
            start_work=self.started.append,
            timers=self.timers,
        )

    def look(self, *, gate: bool = True, working: bool = False, now_s: float = 0.0) -> None:
        self.adoption.next_check(
            gate_is_open=gate,
            is_working=working,
            models=lambda version: (Model(version, MODEL.tensors), MODEL),
            now_s=now_s,
        )

    def run(self, now_s: float = 1.0) -> Any:
        work = self.started[-1]
        return self.adoption.check_done(work, work.run(), now_s)


# -- when a check runs ---------------------------------------------------------------------------


def test_without_a_check_a_release_is_used_as_soon_as_it_is_here() -> None:
    bench = Bench(None)
    assert not bench.adoption.want(ADOPT, is_here=False)
    assert bench.adoption.wanted == ADOPT
    assert bench.adoption.want(ADOPT, is_here=True)
    assert bench.adoption.wanted_version is None
    bench.look()
    assert bench.started == []


def test_a_check_waits_for_its_file_the_gate_and_the_work_that_is_under_way() -> None:
    bench = Bench()
    bench.adoption.want(ADOPT, is_here=False)
    bench.look()
    bench.adoption.want(ADOPT, is_here=True)
    bench.look(gate=False)
    bench.look(working=True)
    assert bench.started == []
    bench.look()
    assert len(bench.started) == 1
    assert bench.timers == {RELEASE_CHECK: CHECK_S_MAX}
    bench.adoption.want(ADOPT, is_here=True)  # said again at the next check-in
    bench.look()
    assert len(bench.started) == 1
    assert bench.run() == Vetoed(7, bytes(32), "check_failed", "", {})
    assert bench.timers == {}
    assert bench.adoption.wanted is None


def test_an_owner_may_have_it_checked_whatever_the_gate_says() -> None:
    bench = Bench(at_once=True)
    bench.adoption.want(ADOPT, is_here=True)
    bench.look(gate=False)
    assert len(bench.started) == 1
    bench.look(gate=False)
    assert not bench.started[0].stopped


def test_a_gate_that_closes_stops_a_check_which_begins_anew() -> None:
    bench = Bench()
    bench.adoption.want(ADOPT, is_here=True)
    bench.look()
    bench.look(gate=False)
    assert bench.started[0].stopped
    assert bench.adoption.check_done(bench.started[0], CheckFailed(), 1.0) is None
    bench.look()
    assert len(bench.started) == 2
    assert isinstance(bench.run(), Vetoed)


def test_a_check_that_gave_up_is_tried_again_a_while_later() -> None:
    bench = Bench()
    bench.adoption.want(ADOPT, is_here=True)
    bench.look()
    refused = gave_up(bench.started[0], "still_stopping")
    assert bench.adoption.check_done(bench.started[0], refused, 5.0) is None
    assert bench.timers == {RELEASE_CHECK: 5.0 + CHECK_AGAIN_S}
    bench.look()
    assert len(bench.started) == 1
    del bench.timers[RELEASE_CHECK]
    assert bench.adoption.woke() is None
    bench.look()
    assert len(bench.started) == 2
    assert round_of(bench.started[0]) == 0


def test_a_check_that_takes_too_long_counts_as_a_no() -> None:
    bench = Bench()
    bench.adoption.want(ADOPT, is_here=True)
    bench.look()
    verdict = bench.adoption.woke()
    assert isinstance(verdict, Vetoed)
    assert verdict.reason == "check_timed_out"
    assert bench.started[0].stopped
    assert bench.adoption.check_done(bench.started[0], Checked(None), 200.0) is None


def test_another_release_or_one_taken_back_ends_the_check() -> None:
    bench = Bench()
    bench.adoption.want(ADOPT, is_here=True)
    bench.look()
    bench.adoption.want(NEWER, is_here=True)
    assert bench.started[0].stopped
    bench.look()
    assert bench.adoption.check_done(bench.started[0], Checked(None), 1.0) is None
    bench.adoption.drop()
    assert bench.started[1].stopped
    bench.look()
    assert len(bench.started) == 2


def test_work_begins_behind_a_check_unless_it_is_over_by_then() -> None:
    for stopped in (False, True):
        bench = Bench()
        bench.adoption.want(ADOPT, is_here=True)
        bench.look()
        work: Any = CheckWork(NEWER, refuse, MODEL, MODEL, ToyTask().trainer)  # type: ignore[arg-type]
        bench.adoption.start(work)
        assert len(bench.started) == 1
        bench.run()
        if stopped:
            work.stop()
        bench.adoption.start_what_waits()
        assert len(bench.started) == (1 if stopped else 2)


# -- what a check says ---------------------------------------------------------------------------


def verdict_of(check: Callable[..., Any], trainer: Any = None) -> Veto | None:
    work = CheckWork(ADOPT, check, MODEL, MODEL, lambda: trainer)
    event = work.run()
    assert isinstance(event, Checked)
    return event.veto


@pytest.mark.parametrize(
    ("answer", "veto"),
    [
        (None, None),
        (True, None),
        (False, Veto("check_failed")),
        ("it \ud800 smells", Veto("check_failed", "it ? smells")),
        (Veto("too_warm", "x" * 999), Veto("too_warm", "x" * 160)),
        (Veto("Too warm!", "41 C"), Veto("check_failed", "Too warm!: 41 C")),
        (Veto("odd", "", {"a": float("nan"), "b": 1.0}), Veto("odd", "", {"b": 1.0})),
        (0.5, Veto("check_raised", "TypeError: the check answered float")),
    ],
)
def test_whatever_a_check_answers_fits_the_wire(answer: Any, veto: Veto | None) -> None:
    assert verdict_of(lambda _candidate, _current: answer) == veto
    if veto is not None:
        message = ReleaseVeto(7, veto.reason, veto.detail, veto.metrics)
        assert frames.seal(message, Address("fed", "0" * 16, "up"), StubCrypto().signer(bytes(32)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no"), "check_raised"),
        (MemoryError(), "out_of_memory"),
        (SystemExit(), "check_raised"),
    ],
)
def test_a_check_that_raises_keeps_the_release_out(error: BaseException, reason: str) -> None:
    def check(_candidate: Model, _current: Model) -> None:
        raise error

    veto = verdict_of(check)
    assert veto is not None
    assert veto.reason == reason


def test_a_check_may_ask_whether_it_is_to_end() -> None:
    def check(_candidate: Model, _current: Model, stop: Callable[[], bool]) -> None:
        work.stop()
        stop()

    work = CheckWork(ADOPT, check, MODEL, MODEL, lambda: None)  # type: ignore[arg-type, return-value]
    assert work.run() == CheckFailed()


class Losses:
    """A trainer whose losses are as told, by version."""

    def __init__(self, candidate: float, current: float, count: int = 4) -> None:
        self._losses = {7: current, 8: candidate}
        self._count = count

    def evaluate(self, model: Model, _plan: Any, *, stop: Any) -> EvalResult:
        assert not stop()
        model.tensors["w"][:] = 9.0  # its own to write to
        return EvalResult(self._losses[model.version], self._count)


@pytest.mark.parametrize(
    ("candidate", "current", "margin", "says"),
    [
        (1.0, 1.0, 0.0, None),
        (1.1, 1.0, 0.0, "loss_is_worse"),
        (1.1, 1.0, 0.2, None),
        (float("nan"), 1.0, 9.0, "loss_is_worse"),
        (float("inf"), 1.0, 9.0, "loss_is_worse"),
        (1.0, float("inf"), 0.0, None),
    ],
)
def test_no_worse_than_compares_on_the_hold_out(
    candidate: float, current: float, margin: float, says: str | None
) -> None:
    read_only = {"w": np.zeros(2, np.float32)}
    read_only["w"].flags.writeable = False
    for count, through in ((4, says), (0, None)):
        trainer: Any = Losses(candidate, current, count)
        work = CheckWork(
            NEWER,
            no_worse_than(margin),
            Model(8, read_only),
            Model(7, read_only),
            functools.partial(lambda made: made, trainer),
        )
        event = work.run()
        assert isinstance(event, Checked)
        assert (None if event.veto is None else event.veto.reason) == through


# -- the driver with real files ------------------------------------------------------------------


class RealDevice:
    """A driver on a real shelf and a real journal, and the coordinator's key in the test's hand."""

    def __init__(self, directory: Path, check: ReleaseCheck | None = None) -> None:
        self.crypto = StubCrypto()
        self.coordinator = self.crypto.signer(bytes(32))
        self.signer = self.crypto.signer(bytes(31) + b"1")
        self.manifest = ToyTask().model()
        self.sent: list[Any] = []
        self.works: list[Work] = []
        self.directory = directory
        self.check = check
        self.down = Address("toy", "0" * 16, "down")
        self.boot()

    def boot(self) -> None:
        enrolment = Enrolment("0" * 16, "toy", self.coordinator.public_key, "", "", b"")
        self.shelf = FileShelf(self.directory / "models", self.manifest.schema)
        self.driver = DeviceDriver(
            manifest=self.manifest,
            make_trainer=lambda: NumpyTrainer(np.zeros((1, 8)), [0]),
            journal=SqliteJournal(self.directory),
            shelf=self.shelf,
            enrolment=enrolment,
            signer=self.signer,
            crypto=self.crypto,
            publish=self._publish,
            start_work=self.works.append,
            observe=lambda _report: None,
            check_release=self.check,
        )
        self.driver.on_gate(GateOpened(600.0), 0.0)
        self.driver.on_link_up(100_000, 0.0)

    def _publish(self, topic: str, data: bytes) -> None:
        address = parse(topic)
        self.sent.append(frames.open_frame(data, address, self.signer.public_key, self.crypto))

    def tensors(self, version: int) -> Any:
        return {name: np.full_like(a, version) for name, a in self.manifest.tensors.items()}

    def release(self, version: int, *, minor: int | None = None) -> None:
        self.shelf.save(version, self.tensors(version))
        digest = bytes.fromhex(tensors_digest(self.manifest.schema, self.tensors(version)))
        frame = frames.seal(Release(version, digest), self.down, self.coordinator)
        if minor is not None:
            self.driver._coordinator_minor = minor
            self.driver._on_message(Release(version, digest), 1.0)
        else:
            self.driver.on_frame(self.down.topic, frame, 1.0)

    def work(self) -> None:
        while self.works:
            work = self.works.pop(0)
            self.driver.work_done(work, work.run(), 2.0)

    def vetoes(self) -> list[int]:
        return [m.version for m in self.sent if isinstance(m, ReleaseVeto)]


def only_even(candidate: Model, current: Model) -> bool:
    assert set(current.tensors) == set(candidate.tensors)
    return candidate.version % 2 == 0


def test_a_veto_is_sent_kept_over_a_reboot_and_said_again_without_another_look(
    tmp_path: Path,
) -> None:
    device = RealDevice(tmp_path, only_even)
    device.release(2)
    device.work()
    device.release(3)
    assert device.driver.released.version == 2
    device.work()
    assert (device.driver.released.version, device.vetoes()) == (2, [3])
    device.boot()
    assert device.driver.released.version == 2
    device.release(3)
    assert (device.works, device.vetoes()) == ([], [3, 3])
    device.release(4)
    device.work()
    assert device.driver.released.version == 4
    assert any(isinstance(message, Available) for message in device.sent)


def test_a_coordinator_of_before_vetoes_is_not_sent_one(tmp_path: Path) -> None:
    device = RealDevice(tmp_path, only_even)
    device.release(3, minor=0)
    device.work()
    assert device.vetoes() == []
    assert device.driver.released.version == 0
    device.release(3, minor=1)
    assert device.vetoes() == [3]


def test_a_version_found_unfit_after_its_file_was_lost_is_not_used_at_the_next_boot(
    tmp_path: Path,
) -> None:
    device = RealDevice(tmp_path)
    device.release(3)
    assert device.driver.released.version == 3
    (tmp_path / "models" / "model-3.npz").write_bytes(b"rot")
    device.check = only_even
    device.boot()
    assert device.driver.released.version == 0
    device.release(3)
    device.work()
    device.boot()
    assert device.driver.released.version == 0


def test_a_release_whose_file_is_damaged_before_or_during_its_check_is_fetched_again(
    tmp_path: Path,
) -> None:
    device = RealDevice(tmp_path, lambda _candidate, _current: True)
    file = tmp_path / "models" / "model-3.npz"

    def fetches() -> int:
        return sum(isinstance(m, FetchRequest) and m.want_version == 3 for m in device.sent)

    device.driver.on_gate(GateClosed("battery_low"), 0.5)
    device.release(3)
    file.write_bytes(b"rot, while it waits for its check")
    device.driver.on_gate(GateOpened(600.0), 1.0)
    assert (device.works, fetches(), device.driver.released.version) == ([], 1, 0)
    device.release(3)
    file.write_bytes(b"rot, while the check runs")
    device.work()
    assert (fetches(), device.driver.released.version) == (2, 0)
    device.release(3)
    device.work()
    assert device.driver.released.version == 3


def test_a_personal_part_is_seen_beside_the_release_whatever_became_of_its_file(
    tmp_path: Path,
) -> None:
    device = RealDevice(tmp_path)
    device.release(3)
    (tmp_path / "models" / "model-3.npz").unlink()
    device.driver.personalise({"b1": np.full(6, 9.0, np.float32)})
    seen = device.driver.released
    assert (seen.version, float(seen.tensors["b1"][0])) == (3, 9.0)
    np.testing.assert_array_equal(seen.tensors["w1"], device.tensors(3)["w1"])
    assert not seen.tensors["b1"].flags.writeable


@pytest.mark.slow
def test_the_app_always_has_one_whole_version_while_releases_switch(tmp_path: Path) -> None:
    device = RealDevice(tmp_path, only_even)
    over, wrong, seen = threading.Event(), [], set()

    def hammer() -> None:
        while not over.is_set():
            model = device.driver.released
            values = {float(v) for array in model.tensors.values() for v in np.unique(array)}
            if model.version and values != {float(model.version)}:
                wrong.append((model.version, values))
            seen.add(model.version)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    chance = random.Random(5)
    versions = [chance.randrange(1, 9) for _ in range(60)]
    for version in versions:
        device.release(version)
        if chance.random() < 0.1:
            device.driver.on_gate(GateClosed("battery_low"), 1.5)
            device.driver.on_gate(GateOpened(600.0), 1.6)
        device.work()
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 1
    assert all(version % 2 == 0 for version in seen)
    assert len(list((tmp_path / "models").glob("model-*"))) <= 3
    assert any(isinstance(message, Declined) for message in device.sent)


def test_the_last_good_version_stays_when_a_new_file_is_damaged_or_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = RealDevice(tmp_path)
    device.release(2)
    app = device.driver.released
    digest = bytes.fromhex(tensors_digest(device.manifest.schema, device.tensors(5)))
    (tmp_path / "models" / "model-5.npz").write_bytes(b"PK\x03\x04 half of it")
    frame = frames.seal(Release(5, digest), device.down, device.coordinator)
    device.driver.on_frame(device.down.topic, frame, 1.0)
    assert device.driver.released is app
    assert device.sent[-1].want_version == 5  # it is asked for instead

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceDriver, "_retain", full)
        with pytest.raises(OSError, match="No space"):
            device.release(4)
    np.testing.assert_array_equal(app.tensors["w0"], device.tensors(2)["w0"])
    device.boot()
    assert device.driver.released.version in (2, 4)


def test_stopping_is_asked_for_by_name() -> None:
    def slow(_candidate: Model, _current: Model, *, trainer: Any, stop: Any) -> None:
        assert trainer is None
        raise TrainingStoppedError(str(stop()))

    work = CheckWork(ADOPT, slow, MODEL, MODEL, lambda: None)  # type: ignore[arg-type, return-value]
    assert work.run() == CheckFailed()
