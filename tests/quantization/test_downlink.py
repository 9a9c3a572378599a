import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import (
    CODEC_NAMES,
    CatchUp,
    ChainState,
    DownlinkChain,
    Step,
    apply_bundle,
    decode,
    encode,
    feeds_back,
    pack_bundle,
    resolve_downlink,
    unpack_bundle,
)
from tests.quantization.forge import bell, heavy, schema
from wire import Tensors, limits, tensors_digest
from wire.errors import LocalProtocolError, NotFiniteError, SchemaMismatchError

SCHEMA = schema((20, 30), (30,), ())
NAMED = [name for name in CODEC_NAMES if name != "auto"]


def model(salt: int, scale: float = 1.0) -> Tensors:
    return {
        spec.name: np.asarray(heavy(spec.size, salt).reshape(spec.shape) * np.float32(scale))
        for spec in SCHEMA.tensors
    }


def start() -> ChainState:
    return ChainState(0, model(1), model(1))


def walk(chain: DownlinkChain, steps: int) -> tuple[list[bytes], list[ChainState]]:
    """A model that moves a little with each version."""
    state, payloads, states = start(), [], [start()]
    for number in range(1, steps + 1):
        moved = {k: v + model(number + 1, 0.01)[k] for k, v in state.exact.items()}
        payload, state = chain.advance(state, moved, seed=number)
        payloads.append(payload)
        states.append(state)
    return payloads, states


def distance(one: Tensors, other: Tensors) -> float:
    return float(np.sqrt(sum(np.sum((one[k] - other[k]).astype(np.float64) ** 2) for k in one)))


@pytest.mark.parametrize("codec", NAMED)
def test_devices_arrive_at_the_bits_that_the_chain_serves(codec: str) -> None:
    payloads, states = walk(DownlinkChain(SCHEMA, codec), 5)
    for first in range(5):
        steps = tuple(Step(i + 1, payloads[i]) for i in range(first, 5))
        bundle = unpack_bundle(pack_bundle(first, steps))
        held = apply_bundle(bundle, SCHEMA, states[first].served)
        assert tensors_digest(SCHEMA, held) == tensors_digest(SCHEMA, states[5].served)


@pytest.mark.parametrize("codec", [name for name in NAMED if feeds_back(name)])
def test_what_a_step_leaves_out_is_in_the_next(codec: str) -> None:
    """A model that stands still is served ever better, and never worse."""
    chain, state = DownlinkChain(SCHEMA, codec), start()
    goal = model(9)
    off = [distance(goal, state.served)]
    for number in range(1, 60):
        _payload, state = chain.advance(state, goal, seed=number)
        assert state.exact is goal
        off.append(distance(goal, state.served))
    assert off[-1] <= 0.5 * off[0]
    if codec in ("ecq", "topk_sign"):
        assert all(later <= sooner * (1 + 1e-6) for sooner, later in itertools.pairwise(off))


@pytest.mark.parametrize("codec", [name for name in NAMED if not feeds_back(name)])
def test_a_codec_whose_error_must_not_be_fed_back_leaves_none(codec: str) -> None:
    _payload, state = DownlinkChain(SCHEMA, codec).advance(start(), model(2), seed=1)
    assert state.exact is state.served
    assert state.version == 1


def test_the_default_codec_stays_close_to_the_exact_model() -> None:
    """A bounded lag, however long the chain: the error of one step, and not the sum of all."""
    _payloads, states = walk(DownlinkChain(SCHEMA), 40)
    lags = [distance(state.exact, state.served) for state in states[1:]]
    step = distance(model(2, 0.01), {k: np.zeros_like(v) for k, v in model(2).items()})
    assert max(lags) <= 4.0 * step
    assert np.mean(lags[20:]) <= 1.2 * np.mean(lags[5:20])


def test_a_step_changes_nothing_that_it_was_given() -> None:
    state, goal = start(), model(3)
    kept = [{k: v.copy() for k, v in each.items()} for each in (state.served, state.exact, goal)]
    DownlinkChain(SCHEMA).advance(state, goal, seed=1)
    for each, before in zip((state.served, state.exact, goal), kept, strict=True):
        assert all((each[k] == before[k]).all() for k in each)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_model_that_has_blown_up_is_not_served(bad: float) -> None:
    goal = model(2)
    goal["t0"][3, 3] = bad
    state = start()
    state.served["t0"][3, 3] = -abs(bad) if np.isfinite(bad) else 0.0
    with pytest.raises(NotFiniteError, match="t0"):
        DownlinkChain(SCHEMA).advance(state, goal, seed=1)


def test_a_model_of_another_schema_is_refused() -> None:
    with pytest.raises(SchemaMismatchError):
        DownlinkChain(SCHEMA).advance(start(), {"t0": bell(3)}, seed=1)


# -- catching up -----------------------------------------------------------------------------------


def test_the_fewest_bytes_are_offered() -> None:
    chain = DownlinkChain(SCHEMA)
    payloads, states = walk(chain, 60)

    def caught(have: int) -> CatchUp:
        found = chain.catch_up(
            60,
            have,
            step_of=lambda version: payloads[version - 1],
            served_of=lambda version: states[version].served,
        )
        assert found is not None
        return found

    snapshot = caught(-1)
    assert snapshot.from_version == -1
    for have in range(60):
        found = caught(have)
        chained = sum(len(p) for p in payloads[have:])
        assert len(found.bundle) <= min(len(snapshot.bundle), chained + 16 * (60 - have) + 16)
        held = apply_bundle(unpack_bundle(found.bundle), SCHEMA, states[have].served)
        assert tensors_digest(SCHEMA, held) == tensors_digest(SCHEMA, states[60].served)
    assert caught(59).from_version == 59
    assert caught(0).from_version == -1


@settings(max_examples=25)
@given(st.integers(-1, 80), st.integers(0, 80), st.sets(st.integers(0, 80)), st.booleans())
def test_what_is_offered_starts_where_the_device_is_and_ends_where_it_should(
    have: int,
    version: int,
    lost: set[int],
    snapshot: bool,  # noqa: FBT001 - drawn
) -> None:
    chain = DownlinkChain(SCHEMA)
    step = encode("ecq", {k: np.zeros_like(v) for k, v in model(1).items()}, SCHEMA, seed=0)
    found = chain.catch_up(
        version,
        have,
        step_of=lambda number: None if number in lost else step,
        served_of=lambda _number: model(1) if snapshot else None,
    )
    chained = 0 <= have < version <= have + limits.DELTAS_PER_BUNDLE_MAX and not lost & set(
        range(have + 1, version + 1)
    )
    if found is None:
        assert not snapshot
        assert not chained
        return
    bundle = unpack_bundle(found.bundle)
    assert bundle.from_version == found.from_version
    assert bundle.steps[-1].version == version
    assert found.from_version in ({-1} if snapshot else set()) | ({have} if chained else set())


def test_a_snapshot_is_the_served_model_to_the_bit() -> None:
    _payloads, states = walk(DownlinkChain(SCHEMA), 3)
    found = DownlinkChain(SCHEMA).catch_up(
        3, -1, step_of=lambda _number: None, served_of=lambda number: states[number].served
    )
    assert found is not None
    (step,) = unpack_bundle(found.bundle).steps
    assert tensors_digest(SCHEMA, decode(step.payload, SCHEMA)) == tensors_digest(
        SCHEMA, states[3].served
    )


# -- names -----------------------------------------------------------------------------------------


def test_auto_on_the_way_down_is_ecq_and_its_error_is_fed_back() -> None:
    assert resolve_downlink("auto") == DownlinkChain(SCHEMA).codec == "auto"
    assert feeds_back("ecq")
    assert [resolve_downlink(name) for name in NAMED] == NAMED
    assert resolve_downlink("ecq:2") == "ecq:2"


@pytest.mark.parametrize("spec", ["zip", "ecq:0", "auto:0.5", "raw:1", ""])
def test_a_codec_that_does_not_exist_is_our_own_mistake(spec: str) -> None:
    with pytest.raises(LocalProtocolError, match="codec"):
        DownlinkChain(SCHEMA, spec)


@pytest.mark.parametrize("noise", [0.0, 1e-30, 1e-3])
def test_a_change_that_the_sample_misses_arrives(noise: float) -> None:
    """As of an embedding: 20 of 4,000 rows of 64 have changed, none of them in the sample."""
    made = schema((4_000, 64))
    rows = heavy(4_000 * 64, 5).reshape(4_000, 64) * np.float32(noise)
    rows[8:28] = bell(20 * 64, 6).reshape(20, 64)
    exact = {"t0": rows}
    _payload, state = DownlinkChain(made).advance(
        ChainState(0, made.zeros(), made.zeros()), exact, seed=1
    )
    left = float(np.sum(np.square(rows - state.served["t0"], dtype=np.float64)))
    assert left < 0.65 * float(np.sum(np.square(rows, dtype=np.float64)))
