"""Rules and strategies, from payloads to a change: order, references, bounds, resuming."""

import math
import random
import tracemalloc
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.aggregation import RULES, Outcome, RoundAggregation, strategy_of
from coordinator.aggregation.rules import clip_norm, damp_of, fair_weights
from coordinator.aggregation.spool import Spool
from coordinator.config import Aggregation
from coordinator.signals import AggregationPlan, RoundOpened
from fleet import reference
from quantization import SHARE_UNITS, encode
from tests.quantization.forge import heavy, schema, tensors_of
from wire import Plan, Schema
from wire.errors import LocalProtocolError, NotFiniteError, RemoteProtocolError

SMALL = schema((3, 4), (), (0,), (7,))
ROBUST = tuple(rule for rule in RULES if rule != "none")
WEIGHT_CAP = 1_000


def plan_of(rule: str, **changes: float | str) -> AggregationPlan:
    plan = AggregationPlan(
        robust=rule, attackers_max=0.3, weight_ratio_max=0.0 if rule == "none" else 2.0
    )
    return msgspec.structs.replace(plan, **changes)


def opened(plan: AggregationPlan, count: int) -> RoundOpened:
    return RoundOpened(
        round=1,
        base_version=0,
        base_digest=b"",
        plan=Plan(seed=7),
        codec="raw",
        cohort=count,
        needed=1,
        invited={str(number): 1 for number in range(count)},
        opened_at_s=0.0,
        deadline_at_s=1.0,
        chunk_bytes_max=1,
        weight_cap=WEIGHT_CAP,
        aggregation=plan,
    )


class Updates:
    """Updates with their ids, weights and factors; `rows` are what they decode to."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        weights: Sequence[int],
        factors: Sequence[float] | None = None,
        *,
        made: Schema = SMALL,
        codec: str = "raw",
    ) -> None:
        self.schema = made
        self.ids = [number.to_bytes(16, "big") for number in range(len(rows))]
        self.weights = list(weights)
        self.factors = list(factors or [1.0] * len(rows))
        self.payloads = {
            key: encode(codec, tensors_of(made, row), made, seed=number)
            for number, (key, row) in enumerate(zip(self.ids, rows, strict=True))
        }

    def aggregate(
        self,
        plan: AggregationPlan,
        *,
        order: Sequence[int] | None = None,
        memory: bytes = b"",
        accepted: Sequence[bytes] | None = None,
    ) -> Outcome:
        gathering = RoundAggregation(self.schema, opened(plan, len(self.ids)), memory)
        for at in order if order is not None else range(len(self.ids)):
            gathering.accept(
                self.ids[at],
                str(at),
                self.weights[at],
                self.payloads[self.ids[at]],
                factor=self.factors[at],
            )
        ids = self.ids if accepted is None else accepted
        return gathering.finish(ids, read=self.payloads.__getitem__)

    def reference(self, plan: AggregationPlan) -> NDArray[np.float64]:
        rows = reference.matrix_of([self.payloads[key] for key in self.ids], self.schema)
        return reference.aggregate(plan, rows, self.weights, factors=self.factors)


def flat(outcome: Outcome) -> NDArray[np.float32]:
    return np.concatenate([np.ravel(values) for values in outcome.change.values()])


def drawn(seed: int, count: int, *, size: int = SMALL.parameters) -> Updates:
    chance = np.random.default_rng(seed)
    towards = chance.standard_normal(size)
    rows = (towards + chance.standard_normal((count, size))) * 10.0 ** (seed % 4 - 3)
    rows *= chance.uniform(0.5, 4.0, (count, 1))
    weights = chance.integers(1, WEIGHT_CAP + 1, count).tolist()
    factors = chance.choice([1.0, 0.7, 2.0**-9], count).tolist()
    return Updates(rows.astype(np.float32), weights, factors)


# -- order -----------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.randoms(use_true_random=False))
@pytest.mark.parametrize("rule", RULES)
def test_any_order_of_arrival_gives_the_same_bits(
    rule: str, seed: int, count: int, chance: random.Random
) -> None:
    updates, order = drawn(seed, count), list(range(count))
    chance.shuffle(order)
    one, other = updates.aggregate(plan_of(rule)), updates.aggregate(plan_of(rule), order=order)
    assert flat(one).tobytes() == flat(other).tobytes()
    assert one.memory == other.memory
    assert one.scores == other.scores


@pytest.mark.parametrize("rule", RULES)
def test_what_was_taken_and_does_not_count_leaves_no_trace(rule: str) -> None:
    updates = drawn(5, 9)
    kept = updates.ids[:3] + updates.ids[5:]
    fewer = drawn(5, 9)
    without = fewer.aggregate(plan_of(rule), order=[0, 1, 2, 5, 6, 7, 8], accepted=kept)
    outcome = updates.aggregate(plan_of(rule), accepted=kept)
    assert flat(outcome).tobytes() == flat(without).tobytes()
    assert outcome.memory == without.memory


@pytest.mark.parametrize("rule", RULES)
def test_a_round_can_be_finished_again_should_its_transaction_fail(rule: str) -> None:
    updates = drawn(6, 8)
    gathering = RoundAggregation(SMALL, opened(plan_of(rule), 8), b"")
    for at, key in enumerate(updates.ids):
        gathering.accept(key, str(at), updates.weights[at], updates.payloads[key])
    first = gathering.finish(updates.ids, read=updates.payloads.__getitem__)
    again = gathering.finish(updates.ids, read=updates.payloads.__getitem__)
    assert flat(first).tobytes() == flat(again).tobytes()
    assert first.memory == again.memory


# -- references ------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 15))
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_what_plain_numpy_makes_of_it(rule: str, seed: int, count: int) -> None:
    updates, plan = drawn(seed, count), plan_of(rule)
    wanted = updates.reference(plan)
    scale = float(np.abs(wanted).max()) or 1.0
    assert np.allclose(flat(updates.aggregate(plan)), wanted, rtol=0.0, atol=2e-4 * scale + 1e-9)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "multi_krum"])
@pytest.mark.parametrize("codec", ["ecq_sr", "eden1", "auto"])
def test_strips_of_a_few_columns_give_the_same_as_whole_blocks(rule: str, codec: str) -> None:
    made = schema((700,), (41,), ())
    rows = np.array([heavy(742, seed) for seed in range(9)], np.float32)
    updates = Updates(rows, [1] * 9, made=made, codec=codec)
    read = updates.payloads.__getitem__
    whole = np.concatenate(
        [strip.copy() for _start, strip in Spool(made, updates.ids, read).strips()], axis=1
    )
    cut = Spool(made, updates.ids, read, strip_bytes_max=36 * 50)
    starts, strips = zip(*((start, strip.copy()) for start, strip in cut.strips()), strict=True)
    assert np.concatenate(strips, axis=1).tobytes() == whole.tobytes()
    assert list(starts) == list(range(0, 742, 50))
    plan = plan_of(rule)
    assert np.allclose(flat(updates.aggregate(plan)), updates.reference(plan), atol=1e-4)


# -- what rules are for ----------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(10, 20),
    st.sampled_from([-100.0, -10.0, -1.0, 10.0, 1e4]),
)
@pytest.mark.parametrize("rule", ROBUST)
def test_a_fifth_of_liars_cannot_carry_the_change_away(
    rule: str, seed: int, count: int, factor: float
) -> None:
    """Whatever they send, and whatever weight they claim, the change stays among honest ones."""
    chance = np.random.default_rng(seed)
    towards = chance.standard_normal(SMALL.parameters)
    rows = towards + 0.2 * chance.standard_normal((count, SMALL.parameters))
    bad = count // 5
    rows[:bad] *= factor
    weights = [WEIGHT_CAP] * bad + [20] * (count - bad)
    sent = np.asarray(np.clip(rows, -4_000.0, 4_000.0), np.float32)
    change = flat(Updates(sent, weights).aggregate(plan_of(rule)))
    honest = rows[bad:].mean(axis=0)
    assert np.linalg.norm(change) <= 1.5 * np.linalg.norm(honest)
    assert float(change @ honest) > 0.0


def test_without_a_rule_one_liar_is_enough() -> None:
    rows = np.ones((10, SMALL.parameters), np.float32)
    rows[0] *= -100.0
    assert (flat(Updates(rows, [1] * 10).aggregate(plan_of("none"))) < 0.0).all()


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=40),
    st.lists(st.floats(0.0, 1e6), max_size=100),
    st.floats(0.01, 1.0),
)
def test_a_clip_never_makes_an_update_longer_than_itself_or_the_clip(
    norms: list[float], past: list[float], quantile: float
) -> None:
    clip = clip_norm(norms, past, quantile)
    for norm in norms:
        damp = damp_of(norm, clip)
        assert 0 <= damp <= SHARE_UNITS
        assert norm * (damp / SHARE_UNITS) <= min(norm, max(clip, 0.0)) * (1 + 1e-12)


def test_a_small_cohort_s_clip_leans_on_the_rounds_before() -> None:
    alone = clip_norm([1.0, 100.0, 100.0], [], 0.5)
    assert alone == 100.0
    assert clip_norm([1.0, 100.0, 100.0], [1.0] * 40, 0.5) == 1.0
    assert clip_norm([5.0] * 20, [1.0] * 40, 0.5) == 5.0
    assert clip_norm([0.0, 0.0], [1.0], 0.5) == math.inf


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.floats(1.0, 10.0))
def test_no_weight_is_above_its_share_of_the_median(weights: list[int], ratio: float) -> None:
    fair = fair_weights(weights, ratio)
    assert max(fair) <= max(1.0, ratio * float(np.median(weights)))
    assert all(1 <= after <= before for after, before in zip(fair, weights, strict=True))
    assert fair_weights(weights, 0.0) == tuple(weights)


# -- what is hostile -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_update_raises_and_leaves_nothing(rule: str) -> None:
    updates = drawn(3, 4)
    clean = updates.aggregate(plan_of(rule))
    gathering = RoundAggregation(SMALL, opened(plan_of(rule), 8), b"")
    too_large = encode("raw", tensors_of(SMALL, np.full(SMALL.parameters, 1e30)), SMALL, seed=0)
    for at, key in enumerate(updates.ids):
        with pytest.raises(NotFiniteError):
            gathering.accept(b"x" * 16, "x", 1, too_large)
        with pytest.raises(RemoteProtocolError):
            gathering.accept(b"y" * 16, "y", 1, updates.payloads[key][:-1])
        gathering.accept(
            key, str(at), updates.weights[at], updates.payloads[key], factor=updates.factors[at]
        )
    after = gathering.finish(updates.ids, read=updates.payloads.__getitem__)
    assert flat(after).tobytes() == flat(clean).tobytes()


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_CAP + 1])
def test_a_weight_out_of_its_bounds_is_our_own_mistake(weight: int) -> None:
    gathering = RoundAggregation(SMALL, opened(plan_of("norm_clip"), 2), b"")
    with pytest.raises(LocalProtocolError):
        gathering.accept(b"1" * 16, "1", weight, next(iter(drawn(1, 1).payloads.values())))


def test_nobody_comes_twice_and_strangers_do_not_count() -> None:
    updates = drawn(1, 2)
    gathering = RoundAggregation(SMALL, opened(plan_of("none"), 4), b"")
    gathering.accept(updates.ids[0], "0", 1, updates.payloads[updates.ids[0]])
    with pytest.raises(LocalProtocolError, match="already"):
        gathering.accept(updates.ids[0], "0", 1, updates.payloads[updates.ids[0]])
    for accepted in ((), updates.ids):
        with pytest.raises(LocalProtocolError, match="not here"):
            gathering.finish(accepted, read=updates.payloads.__getitem__)
    for factor in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(LocalProtocolError, match="factor"):
            gathering.accept(
                updates.ids[1], "1", 1, updates.payloads[updates.ids[1]], factor=factor
            )


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_grow_with_the_number_of_updates(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STRIP_BYTES_MAX", "PAYLOADS_BYTES_MAX", "BLOCK_BYTES_MAX"):
        monkeypatch.setattr(f"coordinator.aggregation.spool.{name}", 1 << 18)
    monkeypatch.setattr(Spool.__init__, "__kwdefaults__", {"strip_bytes_max": 1 << 18})
    made = schema((140_000,))
    payloads = [
        encode("raw", tensors_of(made, heavy(140_000, seed)), made, seed=0) for seed in range(3)
    ]
    peaks = []
    for count in (10, 60):
        ids = [number.to_bytes(16, "big") for number in range(count)]
        gathering = RoundAggregation(made, opened(plan_of(rule), count), b"")
        tracemalloc.start()
        for at, key in enumerate(ids):
            gathering.accept(key, str(at), 1, payloads[at % 3])
        gathering.finish(ids, read=lambda key: payloads[int.from_bytes(key, "big") % 3])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= peaks[0] + 2_000_000
    assert peaks[1] < 20 << 20


# -- strategies ------------------------------------------------------------------------------------


def changes(strategy: str, rounds: int = 4) -> list[NDArray[np.float32]]:
    plan = Aggregation(strategy=strategy, robust="none").plan()  # type: ignore[arg-type] # one of them
    memory, out = b"", []
    for number in range(rounds):
        outcome = drawn(number, 5).aggregate(plan, memory=memory)
        memory = outcome.memory
        out.append(flat(outcome))
    return out


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_a_strategy_is_what_its_paper_says(strategy: str) -> None:
    means = [
        flat(drawn(number, 5).aggregate(plan_of("none"))).astype(np.float64) for number in range(4)
    ]
    m, v = np.zeros_like(means[0]), np.full_like(means[0], 1e-6)
    for mean, change in zip(means, changes(strategy), strict=True):
        wanted = mean
        if strategy == "fedavgm":
            m = 0.9 * m + mean
            wanted = 0.3 * m
        elif strategy in ("fedadam", "fedyogi"):
            square = mean**2
            m = 0.9 * m + 0.1 * mean
            v = (
                0.99 * v + 0.01 * square
                if strategy == "fedadam"
                else v - 0.01 * square * np.sign(v - square)
            )
            wanted = 0.01 * m / (np.sqrt(v) + 1e-3)
        assert np.allclose(change, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi"])
def test_what_a_strategy_remembers_survives_being_written(strategy: str) -> None:
    plan = Aggregation(strategy=strategy).plan()  # type: ignore[arg-type] # one of them
    kept = drawn(1, 5).aggregate(plan).memory
    made = strategy_of(plan)
    memory = made.unpack(kept, SMALL.parameters)
    assert made.pack(memory) == kept
    assert any(array.any() for state in memory.states for array in state)
    one, other = (drawn(2, 5).aggregate(plan, memory=m) for m in (kept, b""))
    assert flat(one).tobytes() != flat(other).tobytes()


def test_another_strategy_begins_anew_and_keeps_the_norms() -> None:
    kept = drawn(1, 5).aggregate(Aggregation(strategy="fedadam").plan()).memory
    yogi = strategy_of(Aggregation(strategy="fedyogi").plan())
    memory = yogi.unpack(kept, SMALL.parameters)
    assert len(memory.norms) == 5
    fresh = yogi.unpack(b"", SMALL.parameters)
    for state, other in zip(memory.states, fresh.states, strict=True):
        assert all((a == b).all() for a, b in zip(state, other, strict=True))


def test_a_round_that_was_written_before_there_was_a_choice_is_a_plain_mean() -> None:
    old = msgspec.msgpack.decode(msgspec.msgpack.encode(opened(plan_of("norm_clip"), 3)))
    del old["aggregation"]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=RoundOpened)
    assert read.aggregation == AggregationPlan()
    assert read.aggregation.robust == "none"
