import hashlib
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from coordinator.config import Aggregation, Rounds
from edge_sdk import EvalResult
from edge_sdk.session import Phase
from fleet.toy import ToyTask
from quantization import encode
from quantization.payload import HEADER_BYTES
from quantization.reader import varint
from tests.support.loopback import Loopback
from wire import BadSignatureError, Manifest, chunk_count, frames, update_id
from wire.messages import Available, Chunk, FetchRequest, Invite, Leave, UpdateOffer

CHUNK = 1_024
ROUNDS = Rounds(count=3, cohort=4, quorum=1.0, deadline_s=60.0)


def play(directory: Path, order: random.Random | None, rounds: Rounds = ROUNDS) -> Loopback:
    loopback = Loopback(directory, count=6, rounds=rounds, order=order)
    loopback.start()
    loopback.play()
    return loopback


def test_rounds_end_with_a_released_model_on_every_device(tmp_path: Path) -> None:
    loopback = play(tmp_path, None)
    assert loopback.coordinator.finished
    assert loopback.coordinator.models.version == 3
    assert {device.released.version for device in loopback.devices} == {3}
    assert all(device.session.sealed is None for device in loopback.devices)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_updates_give_the_same_model_in_any_order_of_arrival(
    tmp_path: Path, seed: int
) -> None:
    in_order = play(tmp_path / "in_order", None)
    shuffled = play(tmp_path / "shuffled", random.Random(seed))
    ids = [
        [row.update_id for row in lb.coordinator.store.updates() if row.counted]
        for lb in (in_order, shuffled)
    ]
    assert sorted(ids[0]) == sorted(ids[1])
    assert in_order.coordinator.models.digest == shuffled.coordinator.models.digest


@pytest.mark.parametrize("seed", range(6))
def test_lost_and_doubled_packets_lose_and_double_no_update(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    def bad_wire(_topic: str, data: bytes) -> list[bytes]:
        return [data] * chance.choice((0, 1, 1, 1, 2))

    loopback = Loopback(
        tmp_path,
        count=6,
        rounds=Rounds(count=3, cohort=3, quorum=0.3, deadline_s=300.0),
        order=chance,
        tamper=bad_wire,
    )
    loopback.start()
    loopback.play(until_s=5_000.0)
    rows = loopback.coordinator.store.updates()
    assert loopback.coordinator.finished
    assert len({row.update_id for row in rows}) == len(rows)
    for row in rows:
        if row.receipted_at is not None:
            assert row.counted is not None, "receipted and never settled"
    counted = [row for row in rows if row.counted]
    assert len({(row.round, row.device) for row in counted}) == len(counted)


@pytest.mark.slow
def test_a_coordinator_that_died_between_any_two_packets_settles_what_it_receipted(
    tmp_path: Path,
) -> None:
    for stop_after in range(0, 60, 3):
        directory = tmp_path / str(stop_after)
        directory.mkdir()
        loopback = Loopback(directory, count=4, rounds=ROUNDS)
        loopback.start()
        for _ in range(stop_after):
            loopback.deliver()
        before = {row.update_id: row for row in loopback.coordinator.store.updates()}
        loopback.coordinator.store.close()  # nothing is flushed: that is the crash
        loopback.boot_coordinator().start(loopback.now_s)
        loopback.coordinator.on_link_up(131_072, loopback.now_s)
        loopback.play()
        assert loopback.coordinator.finished
        after = {row.update_id: row for row in loopback.coordinator.store.updates()}
        for key, row in before.items():
            if row.receipted_at is not None:
                assert after[key].counted is not None
                assert after[key].receipted_at == row.receipted_at
        assert loopback.coordinator.models.version == 3
        loopback.coordinator.store.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "robust"),
    [
        ("fedadam", "norm_clip"),
        ("fedavgm", "median"),
        ("fedyogi", "geometric_median"),
        ("fedprox", "multi_krum"),
    ],
)
def test_a_strategy_gives_the_same_bits_whenever_its_coordinator_died(
    tmp_path: Path, strategy: str, robust: str
) -> None:
    """What is remembered from version to version comes back with the version."""
    digests = set()
    for stop_after in (0, 17, 33, 48, 60):
        directory = tmp_path / str(stop_after)
        directory.mkdir()
        rules = Aggregation(strategy=strategy, robust=robust)  # type: ignore[arg-type] # of the file
        loopback = Loopback(directory, count=4, rounds=ROUNDS, aggregation=rules)
        loopback.start()
        if stop_after:
            for _ in range(stop_after):
                loopback.deliver()
            loopback.coordinator.store.close()  # nothing is flushed: that is the crash
            loopback.boot_coordinator().start(loopback.now_s)
            loopback.coordinator.on_link_up(131_072, loopback.now_s)
        loopback.play()
        assert loopback.coordinator.models.version == 3
        digests.add(loopback.coordinator.models.digest)
        loopback.coordinator.store.close()
    assert len(digests) == 1


# -- bad input -------------------------------------------------------------------------------------


def collecting(directory: Path) -> Loopback:
    """Round 1 is open, device 0 is invited and has sent nothing."""
    loopback = Loopback(directory, count=5, rounds=Rounds(count=1, cohort=4, quorum=0.5))
    loopback.start()
    while loopback.devices[0].session.phase is not Phase.TRAINING:
        assert loopback.deliver() or pass_time(loopback)
    return loopback


def pass_time(loopback: Loopback) -> bool:
    loopback.now_s += 2.5
    loopback.coordinator.wake(loopback.now_s)
    return True


def offer(loopback: Loopback, payload: bytes, **changes: object) -> UpdateOffer:
    sealed = loopback.devices[0].session
    assert isinstance(sealed.invitation, Invite)
    fields: dict[str, object] = {
        "update_id": frames_update_id(loopback),
        "round": sealed.invitation.round,
        "base_version": sealed.invitation.base_version,
        "payload_bytes": len(payload),
        "payload_digest": hashlib.sha256(payload).digest(),
        "chunk_bytes": CHUNK,
        "num_examples": 10,
        "chunks_follow": True,
    }
    return UpdateOffer(**(fields | changes))  # type: ignore[arg-type] # fields are named above


def frames_update_id(loopback: Loopback) -> bytes:
    return update_id("toy", 1, loopback.devices[0].session.device)


def send(loopback: Loopback, payload: bytes) -> None:
    message = offer(loopback, payload)
    loopback.speak(0, message)
    for index in range(chunk_count(len(payload), CHUNK)):
        part = payload[index * CHUNK : (index + 1) * CHUNK]
        loopback.speak(0, Chunk(message.update_id, index, part))


def good_payload() -> bytes:
    schema = ToyTask().model().schema
    return encode("raw", schema.zeros(), schema, seed=0)


def resealed(payload: bytes) -> bytes:
    """The payload with a check that is right, whatever it carries."""
    head, rest = payload[: HEADER_BYTES - 4], payload[HEADER_BYTES:]
    return head + zlib.crc32(rest, zlib.crc32(head)).to_bytes(4, "little") + rest


def with_values(values: NDArray[np.float32]) -> bytes:
    content = values.astype("<f4").tobytes()
    return resealed(good_payload()[: -len(content)] + content)


def not_a_number() -> bytes:
    values = np.zeros(ToyTask().model().schema.parameters, np.float32)
    values[5] = np.nan
    return with_values(values)


def with_symbols(squeezed_bytes: int, frame: bytes) -> bytes:
    """A payload of symbols, where one of floats was: gaps of so many bytes, and no signs."""
    steps = len(ToyTask().model().schema.tensors) * b"\x04\x80\x3f"
    sizes = varint(squeezed_bytes) + varint(len(frame)) + varint(0)
    return resealed(good_payload()[:HEADER_BYTES] + steps + b"\x01" + sizes + frame)


def compressed(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(bytes(size))


def other_shape() -> bytes:
    schema = ToyTask().model().schema
    other = type(schema)(tensors=schema.tensors[:-1])
    return encode("raw", other.zeros(), other, seed=0)


PAYLOADS: dict[str, tuple[Callable[[], bytes], str]] = {
    "flipped bit": (lambda: good_payload()[:-1] + bytes((good_payload()[-1] ^ 1,)), "digest"),
    "nan": (not_a_number, "not_finite"),
    "wrong shape": (other_shape, "schema_mismatch"),
    "zstd bomb": (lambda: with_symbols(200, compressed(4 << 20)[4:]), "bad_compression"),
    "second frame": (
        lambda: with_symbols(200, compressed(200)[4:] + compressed(1)),
        "bad_compression",
    ),
    "trailing bytes": (lambda: resealed(good_payload() + b"x"), "trailing_bytes"),
    "oversized": (lambda: with_symbols(100_000, b"x"), "too_large"),
    "truncated": (lambda: good_payload()[: HEADER_BYTES - 1], "truncated"),
    "other codec": (
        lambda: resealed(good_payload()[:1] + b"\x63" + good_payload()[2:]),
        "unknown_codec",
    ),
    "too large to sum": (lambda: with_values(np.full(68, 1e30, np.float32)), "not_finite"),
}


@pytest.mark.parametrize("attack", PAYLOADS)
def test_a_bad_update_is_settled_with_its_reason_and_the_round_goes_on(
    tmp_path: Path, attack: str
) -> None:
    loopback = collecting(tmp_path)
    make, reason = PAYLOADS[attack]
    send(loopback, make())
    name = loopback.devices[0].session.device
    row = loopback.coordinator.store.update(frames_update_id(loopback))
    assert row is not None
    assert row.receipted_at is not None
    assert row.counted is False
    assert row.reason is not None
    assert row.reason.startswith(reason)
    assert loopback.incidents()[name, row.reason] == 1
    loopback.devices[0].session = loopback.devices[1].session  # it says no more in this round
    loopback.devices.pop(0)
    loopback.play()
    assert loopback.coordinator.models.version == 1


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 0xFF,)) + data[at + 1 :]


FRAMES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "corrupt body": (lambda frame: flipped(frame, -1 + len(frame)), "digest_mismatch"),
    "wrong signature": (lambda frame: flipped(frame, 20), "bad_signature"),
    "no signature": (lambda frame: frame[:18] + bytes(64) + frame[82:], "bad_signature"),
    "truncated": (lambda frame: frame[:-1], "truncated"),
    "trailing": (lambda frame: frame + b"x", "trailing_bytes"),
    "another version": (lambda frame: flipped(frame, 2), "unsupported_version"),
    "unknown kind": (lambda frame: flipped(frame, 4), "unsupported_version"),
    "noise": (lambda _frame: b"\x00" * 200, "malformed"),
    "nothing": (lambda _frame: b"", "truncated"),
}


@pytest.mark.parametrize("attack", FRAMES)
def test_a_bad_frame_is_counted_every_time_and_said_once(tmp_path: Path, attack: str) -> None:
    loopback = collecting(tmp_path)
    make, reason = FRAMES[attack]
    message = offer(loopback, good_payload())
    frame = frames.seal(message, loopback.address(0), loopback.signers[0])
    for _ in range(5):
        loopback.inject(0, make(frame))
    name = loopback.devices[0].session.device
    assert loopback.incidents()[name, reason] == 5
    said = [r for r in loopback.reports if r.what == "bad_input" and r.device == name]
    assert len(said) == 1
    loopback.play()
    assert loopback.coordinator.models.version == 1


def test_a_frame_under_another_devices_topic_does_not_verify(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    frame = frames.seal(offer(loopback, good_payload()), loopback.address(0), loopback.signers[0])
    loopback.inject(1, frame)
    assert (loopback.devices[1].session.device, "bad_signature") in loopback.incidents()


def test_an_update_for_a_round_that_never_was_is_stale(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    name = loopback.devices[0].session.device
    payload = good_payload()
    loopback.speak(0, offer(loopback, payload, round=9, update_id=update_id("toy", 9, name)))
    assert loopback.coordinator.store.update(update_id("toy", 9, name)) is None
    assert loopback.incidents()[name, "stale_round"] == 1


def test_a_duplicate_with_other_bytes_changes_nothing(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    payload = good_payload()
    send(loopback, payload)
    row = loopback.coordinator.store.update(frames_update_id(loopback))
    send(loopback, payload)
    loopback.speak(0, offer(loopback, payload + b"x"))
    assert loopback.coordinator.store.update(frames_update_id(loopback)) == row
    assert (loopback.devices[0].session.device, "duplicate") in loopback.incidents()


def test_an_oversized_offer_is_refused_before_a_byte_of_it_is_kept(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    loopback.speak(0, offer(loopback, b"x", payload_bytes=200_000_000))
    row = loopback.coordinator.store.update(frames_update_id(loopback))
    assert row is not None
    assert (row.counted, row.reason) == (False, "too_large")


def test_a_stranger_is_counted_as_nobody(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    loopback.coordinator.on_frame("potluck/1/toy/0123456789abcdef/up", b"x" * 100, loopback.now_s)
    assert loopback.incidents()["-", "unknown_sender"] == 1


def test_work_that_comes_after_the_cohort_is_full_is_late_and_no_offence(tmp_path: Path) -> None:
    rounds = Rounds(count=1, cohort=2, over_select=2.0, quorum=0.5)
    loopback = Loopback(tmp_path, count=4, rounds=rounds)
    loopback.start()
    loopback.play()
    while loopback.deliver():
        pass
    reasons = [row.reason for row in loopback.coordinator.store.updates() if not row.counted]
    assert reasons == ["round_closed"] * 2
    assert loopback.incidents() == {}


# -- what reviews found ----------------------------------------------------------------------------


class Evaluator:
    """A user's `task.test()`, on a bad day."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer

    def evaluate(self, _model: object, _plan: object, *, stop: object) -> object:
        assert stop is not None
        return self._answer()


def raises(error: Exception) -> Callable[[], object]:
    def answer() -> object:
        raise error

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        raises(RuntimeError("no data")),
        raises(BadSignatureError("not even ours")),
        lambda: None,
        lambda: EvalResult(float("nan"), 3, {"accuracy": np.float64(0.5)}),
    ],
)
def test_whatever_an_evaluation_does_the_round_is_settled_and_the_next_one_opens(
    tmp_path: Path, answer: Callable[[], object]
) -> None:
    loopback = Loopback(tmp_path, count=6, rounds=ROUNDS, evaluator=Evaluator(answer))
    loopback.start()
    loopback.play()
    assert loopback.coordinator.models.version == 3
    assert all(row.counted is not None for row in loopback.coordinator.store.updates())


def test_devices_whose_task_makes_another_first_model_train_from_the_coordinators(
    tmp_path: Path,
) -> None:
    tensors = {n: t + np.float32(1.0) for n, t in ToyTask().model().tensors.items()}
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS, device_model=Manifest(tensors))
    loopback.start()
    loopback.play()
    same = play(tmp_path / "same", None)
    assert loopback.coordinator.finished
    first = [row for row in loopback.coordinator.store.updates() if row.round == 1]
    payload_digests = {row.update_id: row.digest for row in same.coordinator.store.updates()}
    assert any(payload_digests.get(row.update_id) == row.digest for row in first)


def test_chunks_of_one_byte_are_refused(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    loopback.speak(0, FetchRequest(0, -1, 1))
    assert (loopback.devices[0].session.device, "malformed") in loopback.incidents()


def test_a_device_that_asks_for_a_model_again_and_again_is_sent_it_a_few_times(
    tmp_path: Path,
) -> None:
    sent: list[bytes] = []

    def note(_topic: str, data: bytes) -> list[bytes]:
        sent.append(data)
        return [data]

    loopback = collecting(tmp_path)
    loopback.tamper = note
    for _ in range(100):
        loopback.speak(0, FetchRequest(0, -1, 100_000))
    assert 0 < len(sent) <= 8


def test_offers_for_rounds_that_never_were_leave_no_line_in_the_ledger(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    name = loopback.devices[0].session.device
    for number in range(50, 80):
        key = update_id("toy", number, name)
        loopback.speak(0, offer(loopback, good_payload(), round=number, update_id=key))
    assert loopback.coordinator.store.updates() == []


def test_nobody_is_invited_again_to_a_round_whose_time_is_over(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    coordinator, late = loopback.coordinator, loopback.devices[0].session.device
    opened = coordinator.rounds.round.opened
    assert opened is not None
    loopback.now_s = opened.deadline_at_s + 5.0
    coordinator = loopback.boot_coordinator()
    coordinator.start(loopback.now_s)
    assert late in coordinator.rounds.round.waiting_for
    session = loopback.devices[0].session
    sent_bytes = coordinator.sent_bytes
    loopback.speak(
        0,
        Available(
            check_in=session.check_in + 1,
            window_s=60.0,
            held_version=0,
            released_version=0,
            schema_digest=session.schema_digest,
            device_class="unknown",
            battery_fraction=1.0,
            charging=True,
            metered=False,
            codecs=session.codecs,
        ),
    )
    assert coordinator.store.declines(1)[late] == "deadline_passed"
    assert late not in coordinator.rounds.round.waiting_for
    assert coordinator.sent_bytes == sent_bytes
    assert [lease.device for lease in coordinator.leases.valid(loopback.now_s)] == [late]


def test_a_round_that_was_open_when_the_clock_went_back_ends_all_the_same(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    loopback.now_s -= 1e9
    loopback.boot_coordinator().start(loopback.now_s)
    deadline = loopback.coordinator.rounds.timers["round_deadline"]
    assert deadline - loopback.now_s < 600.0


@pytest.mark.parametrize("by_s", [3.2e7, -3.2e7])
def test_a_clock_that_is_set_hastens_and_delays_nothing(tmp_path: Path, by_s: float) -> None:
    loopback = collecting(tmp_path)
    coordinator = loopback.coordinator
    before = {timer: at_s - loopback.now_s for timer, at_s in coordinator.rounds.timers.items()}
    leases = len(coordinator.leases.valid(loopback.now_s))
    loopback.now_s += by_s
    coordinator.on_clock_step(by_s, loopback.now_s)
    after = {timer: at_s - loopback.now_s for timer, at_s in coordinator.rounds.timers.items()}
    assert after == pytest.approx(before)
    assert len(coordinator.leases.valid(loopback.now_s)) == leases
    assert coordinator.rounds.is_open
    started_s = loopback.now_s
    loopback.play()
    assert coordinator.finished
    assert loopback.now_s - started_s < 120.0


def test_no_round_opens_while_nobody_can_be_invited(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    loopback.coordinator.on_link_down()
    for _ in range(100):
        loopback.deliver()
        pass_time(loopback)
    assert loopback.coordinator.store.last_round() == 0
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play()
    assert loopback.coordinator.finished


def test_a_revoked_device_that_has_not_heard_is_told_again(tmp_path: Path) -> None:
    loopback = collecting(tmp_path)
    loopback.speak(0, Leave())
    loopback.devices[0].leave()
    while loopback.deliver():
        pass
    assert loopback.devices[0].session.phase is Phase.REVOKED


# -- a round every so often ------------------------------------------------------------------------


def opened_at(loopback: Loopback) -> list[float]:
    return [row["opened_at"] for row in loopback.coordinator.store.rounds()]


def every(every_s: float) -> Rounds:
    return Rounds(count=3, cohort=2, quorum=1.0, deadline_s=30.0, every_s=every_s)


def test_a_round_opens_no_sooner_than_it_may_after_the_one_before(tmp_path: Path) -> None:
    loopback = play(tmp_path, None, every(100.0))
    first, second, third = opened_at(loopback)
    assert 100.0 <= second - first < 110.0
    assert 100.0 <= third - second < 110.0


def test_a_restart_does_not_hasten_the_next_round(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=every(100.0))
    loopback.start()
    while not loopback.coordinator.store.rounds():
        assert loopback.deliver() or pass_time(loopback)
    loopback.coordinator.store.close()
    loopback.boot_coordinator().start(loopback.now_s)
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play()
    first, second, _third = opened_at(loopback)
    assert 100.0 <= second - first < 110.0


def test_a_clock_that_is_set_back_delays_the_next_round_by_no_more_than_one_interval(
    tmp_path: Path,
) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=every(100.0))
    loopback.start()
    while not loopback.coordinator.models.version:
        assert loopback.deliver() or pass_time(loopback)
    loopback.coordinator.store.close()
    loopback.now_s -= 40_000.0
    loopback.boot_coordinator().start(loopback.now_s)
    restarted_s = loopback.now_s
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play()
    assert loopback.coordinator.finished
    assert opened_at(loopback)[1] - restarted_s < 110.0
