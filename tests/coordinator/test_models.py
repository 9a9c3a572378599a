import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator import models as module
from coordinator.models import Models, tensors_from_bytes, tensors_to_bytes
from coordinator.signals import RoundOpened
from coordinator.store import Store, StoreError
from quantization import Accumulator, apply_bundle, encode, unpack_bundle
from wire import Manifest, Plan, Tensors, limits, tensors_digest

NONE_KEPT: frozenset[int] = frozenset()


def manifest(seed: int = 1) -> Manifest:
    chance = np.random.default_rng(seed)
    return Manifest(
        {
            "w": chance.standard_normal((4, 5)).astype(np.float32),
            "mine": np.ones(3, np.float32),
            "b": np.asarray(0.5, np.float32),
            "none": np.zeros((0, 2), np.float32),
        },
        parts={"mine": "personal"},
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.sqlite3")
    yield made
    made.close()


def update(models: Models, seed: int) -> bytes:
    chance = np.random.default_rng(seed)
    tensors: Tensors = {
        spec.name: np.asarray(chance.standard_normal(spec.shape) * 0.1, np.float32)
        for spec in models.schema.tensors
    }
    return encode("raw", tensors, models.schema, seed=0)


def mean_of(models: Models, weights: dict[int, int]) -> Tensors:
    """The weighted mean of the updates of these seeds."""
    total = Accumulator(models.schema, weight_cap=10, updates_max=4)
    for seed, weight in weights.items():
        total.add(update(models, seed), weight)
    return total.finish()[0]


def grow(models: Models, store: Store, rounds: int, *, keep: frozenset[int] = NONE_KEPT) -> None:
    for _ in range(rounds):
        number = store.last_round() + 1
        store.open_round(
            RoundOpened(
                round=number,
                base_version=models.version,
                base_digest=models.digest,
                plan=Plan(),
                codec="raw",
                cohort=2,
                needed=1,
                invited={},
                opened_at_s=0.0,
                deadline_at_s=1.0,
                chunk_bytes_max=1_000,
                weight_cap=1_000,
            )
        )
        mean = mean_of(models, {number: 1, 100 + number: 3})
        commit, state = models.next_version(mean, number, (), b"kept %d" % number)
        store.commit_round(commit, 1.0, keep=keep)
        models.adopt(commit, state)


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def test_stored_tensors_come_back_to_the_bit() -> None:
    schema = manifest().schema
    tensors = manifest().tensors
    data = tensors_to_bytes(schema, tensors)
    assert same(tensors_from_bytes(schema, data), tensors)
    for wrong in (data[:-1], data + b"\x00", b""):
        with pytest.raises(StoreError, match="stored tensors"):
            tensors_from_bytes(schema, wrong)


def test_version_0_is_the_tasks_model_and_is_written_once(store: Store) -> None:
    models = Models(manifest(), store, "auto", 1.0)
    assert models.version == 0
    assert set(models.served) == {"w", "b", "none"}
    again = Models(manifest(), store, "auto", 2.0)
    assert again.digest == models.digest
    assert store.latest_version() == 0


def test_what_does_not_travel_stays_as_the_task_made_it(store: Store) -> None:
    models = Models(manifest(), store, "auto", 1.0)
    grow(models, store, 1)
    whole = models.whole(models.served)
    assert list(whole) == ["w", "mine", "b", "none"]
    assert (whole["mine"] == 1.0).all()
    assert not same({"w": whole["w"]}, {"w": manifest().tensors["w"]})


@pytest.mark.parametrize("codec", ["auto", "raw", "f16", "q8", "ecq", "ecq_sr"])
def test_a_restart_finds_the_same_model(store: Store, codec: str) -> None:
    models = Models(manifest(), store, codec, 1.0)
    grow(models, store, 3)
    again = Models(manifest(), store, codec, 2.0)
    assert (again.version, again.digest) == (3, models.digest)
    assert same(again.served, models.served)
    assert same(again.exact, models.exact)


@pytest.mark.parametrize("codec", ["raw", "f16", "q8", "ecq", "ecq_sr"])
def test_a_device_arrives_at_the_served_bits_from_any_version(store: Store, codec: str) -> None:
    models = Models(manifest(), store, codec, 1.0)
    seen = {0: models.served}
    for _ in range(4):
        grow(models, store, 1)
        seen[models.version] = models.served
    for have in (-1, 0, 1, 2, 3):
        download = models.bundle(4, have)
        assert download is not None
        assert download.from_version in {have, -1}
        rebuilt = apply_bundle(
            unpack_bundle(download.payload), models.schema, seen.get(download.from_version, {})
        )
        assert same(rebuilt, models.served)
        assert tensors_digest(models.schema, rebuilt) == models.digest.hex()


def test_what_quantization_left_out_is_in_the_next_delta(store: Store) -> None:
    models = Models(manifest(), store, "ecq", 1.0)
    lossless_sum = {name: values.astype(np.float64) for name, values in models.served.items()}
    for number in range(1, 9):
        mean = mean_of(models, {number: 1})
        lossless_sum = {name: lossless_sum[name] + mean[name] for name in mean}
        commit, state = models.next_version(mean, number, ())
        missing = {name: state.exact[name] - models.served[name] for name in state.exact}
        assert commit.delta == encode("ecq", missing, models.schema, seed=number)
        models.adopt(commit, state)
    assert np.allclose(models.exact["w"], lossless_sum["w"], atol=1e-5)
    # The error stays at one step's size instead of adding up over eight.
    assert np.abs(models.served["w"] - lossless_sum["w"]).max() < 0.4


def test_what_a_strategy_keeps_comes_and_goes_with_its_version(store: Store) -> None:
    models = Models(manifest(), store, "ecq", 1.0)
    assert models.memory == b""
    grow(models, store, 1)
    grow(models, store, 2, keep=frozenset({1}))
    assert models.memory == Models(manifest(), store, "ecq", 1.0).memory == b"kept 3"
    assert [store.strategy_memory(version) for version in range(4)] == [
        b"",
        b"kept 1",
        b"",
        b"kept 3",
    ]


def test_a_codec_that_must_not_be_fed_back_leaves_nothing_over(store: Store) -> None:
    models = Models(manifest(), store, "ecq_sr", 1.0)
    grow(models, store, 2)
    assert same(models.exact, models.served)


def test_the_next_version_is_not_adopted_before_it_is_on_disk(store: Store) -> None:
    models = Models(manifest(), store, "auto", 1.0)
    digest = models.digest
    commit, _ = models.next_version(mean_of(models, {1: 1}), 1, ())
    assert commit.version == 1
    assert (models.version, models.digest) == (0, digest)


def test_a_chain_that_is_too_long_or_cannot_be_had_gives_a_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(manifest(), store, "ecq", 1.0)
    grow(models, store, 3)
    chain = models.bundle(3, 2)
    assert chain is not None
    assert chain.from_version == 2
    monkeypatch.setattr(limits, "DELTAS_PER_BUNDLE_MAX", 2)
    long = models.bundle(3, 0)
    assert long is not None
    assert long.from_version == -1
    future = models.bundle(3, 9)
    assert future is not None
    assert future.from_version == -1


def test_a_version_that_is_not_there_is_not_served(store: Store) -> None:
    models = Models(manifest(), store, "ecq", 1.0)
    grow(models, store, 2)
    assert models.bundle(9, 0) is None
    assert models.bundle(9, -1) is None
    assert models.bundle(1, -1) is None  # its tensors were not kept


def test_bundles_in_memory_are_few(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUNDLE_BYTES_KEPT_MIN", 1)
    models = Models(manifest(), store, "ecq", 1.0)
    grow(models, store, 4, keep=frozenset(range(5)))
    for version in range(5):
        for have in range(-1, 5):
            assert models.bundle(version, have) is not None
    kept = sum(len(bundle.payload) for bundle in models._bundles.values())
    assert kept <= 2 * 4 * models.schema.parameters or len(models._bundles) == 1
    assert models.bundle(4, 4) is models.bundle(4, 4)


def test_a_state_directory_of_another_model_is_refused(store: Store) -> None:
    Models(manifest(), store, "auto", 1.0)
    other = Manifest({"w": np.zeros((4, 6), np.float32)})
    with pytest.raises(StoreError, match="another model"):
        Models(other, store, "auto", 2.0)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("DELETE FROM tensors", "missing"),
        ("UPDATE tensors SET served = zeroblob(length(served))", "damaged"),
        ("UPDATE tensors SET served = zeroblob(3)", "3 bytes"),
        ("UPDATE models SET digest = zeroblob(32)", "damaged"),
    ],
)
def test_a_damaged_store_is_refused(store: Store, statement: str, why: str) -> None:
    Models(manifest(), store, "auto", 1.0)
    with contextlib.closing(Store(store.path)) as vandal:
        vandal._db.execute(statement)
    with pytest.raises(StoreError, match=why):
        Models(manifest(), store, "auto", 2.0)
