"""Fine-tuning in a federation: all of a small transformer, or low-rank adapters on it.

A next-character model is trained on plays, in one place. Devices then have another kind of text,
the help topics of Python, one each. They fine-tune all parameters, or adapters alone (LoRA, Hu et
al. 2021) with the base as constants of the file: the same rounds, cohorts, examples and codec.
Either arm has the learning rate of one grid that is best for it, on a seed that is not reported.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import sources
from benchmarks.data import TRAIN_SHARE
from coordinator import FederationConfig, load_config
from edge_sdk import DeviceInfo, LiteRTTrainer, Model
from fleet import FleetRun, StubCrypto
from fleet.virtual import VirtualFleet
from litert_author import (
    Lora,
    Sequential,
    adam,
    dense,
    embedding,
    layer_norm,
    lora,
    positions,
    transformer_block,
)
from wire import Manifest, Plan, Tensors

FILE: Final = Path(__file__).parent / "federations" / "next-char-lora.toml"
CONTEXT: Final = 32
import os
WIDTH: Final = int(os.environ.get('W','128'))
HIDDEN: Final = 2 * WIDTH
BATCH: Final = 16
RANK: Final = 3
HEAD_RANK: Final = 4
WINDOWS: Final = 160
TEST_WINDOWS: Final = 640
RATES: Final = (0.001, 0.003, 0.01)
SEEDS: Final = (1, 2, 3)
TUNING_SEED: Final = 0
LAST: Final = 5

Windows = tuple[NDArray[np.int64], NDArray[np.int64]]


def model(
    initial: Tensors | None = None, *, rank: int = 0, head_rank: int = 0, alpha: float = 1.0, batch: int = BATCH
) -> Sequential:
    """The transformer; with a rank, its kernels are frozen and adapters are trained."""
    adapted = rank > 0
    part: Any = "frozen" if adapted else "shared"
    block = lora(rank, alpha * rank) if adapted else None
    head = lora(head_rank, alpha * head_rank) if head_rank else None
    return Sequential(
        (CONTEXT,),
        [
            embedding(sources.PRINTABLE, WIDTH, part=part),
            positions(part=part),
            transformer_block(4, HIDDEN, causal=True, adapter=block),
            layer_norm(),
            dense(sources.PRINTABLE, adapter=head, part=part),
        ],
        optimizer=adam(),
        batch=batch,
        seed=7,
        initial=initial or {},
    )


def pretrain(steps: int, phases: Sequence[float]) -> tuple[Tensors, float]:
    """A base, trained on the plays."""
    kept = [(t[: int(len(t) * TRAIN_SHARE)], t[int(len(t) * TRAIN_SHARE) :]) for t in (sources.printed(),)]
    built = model(batch=32).manifest()
    tensors = built.tensors
    for number, rate in enumerate(phases):
        chance = np.random.Generator(np.random.Philox(key=number))
        both = [windows(t, chance.integers(0, len(t) - CONTEXT - 1, steps * 32)) for t, _ in kept]
        trainer = LiteRTTrainer(built, tuple(np.concatenate(z) for z in zip(*both)))
        plan = Plan(local_epochs=1, batch=32, learning_rate=rate)
        got = trainer.train(Model(0, tensors), plan, stop=lambda: False)
        tensors = got.tensors
        print(number, rate, got.metrics)
    both = [windows(t, np.linspace(0, len(t) - CONTEXT - 1, TEST_WINDOWS).astype(np.int64)) for _, t in kept]
    held = tuple(np.concatenate(z) for z in zip(*both))
    return tensors, measure(built, tensors, held)


def measure(built: Manifest, tensors: Tensors, held: Windows) -> float:
    trainer = LiteRTTrainer(built, held, holdout=held)
    plan = Plan(local_epochs=1, batch=1, learning_rate=1.0)
    return trainer.evaluate(Model(0, tensors), plan, stop=lambda: False).metrics["accuracy"]


def windows(text: NDArray[np.int64], starts: NDArray[np.int64]) -> Windows:
    """Characters, and those that follow each."""
    rows = text[starts[:, None] + np.arange(CONTEXT + 1)]
    return rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)


class Tuned:
    """The task: one help topic a device."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.trainers: dict[int, LiteRTTrainer] = {}

    def model(self) -> Manifest:
        return self._manifest

    def trainer(self, device: DeviceInfo) -> LiteRTTrainer:
        return LiteRTTrainer(self._manifest, share(device.index), seed=device.seed)

    def test(self) -> LiteRTTrainer:
        held = test_set()
        return LiteRTTrainer(self._manifest, held, holdout=held)


def share(index: int) -> Windows:
    text = sources.typed()[index]
    last = int(len(text) * TRAIN_SHARE) - CONTEXT - 1
    return windows(text, np.linspace(0, last, WINDOWS).astype(np.int64))


def test_set() -> Windows:
    parts = []
    texts = sources.typed()
    for text in texts:
        first, last = int(len(text) * TRAIN_SHARE), len(text) - CONTEXT - 1
        parts.append(windows(text, np.linspace(first, last, -(-TEST_WINDOWS // len(texts))).astype(np.int64)))
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def federate(manifest: Manifest, rate: float, codec: str, seed: int, rounds: int | None = None):
    config = load_config(FILE)
    config = msgspec.structs.replace(
        config,
        rounds=msgspec.structs.replace(config.rounds, learning_rate=rate, count=rounds or config.rounds.count),
        uplink=msgspec.structs.replace(config.uplink, codec=codec),
    )
    run = FleetRun(config=config, task=Tuned(manifest), count=len(sources.typed()), seed=seed, crypto=StubCrypto())
    fleet = VirtualFleet(run, lives_days=False, clocks_are_right=True)
    try:
        fleet.start()
        fleet.world.run(fleet.world.now_s + 86400.0, over=lambda: fleet.coordinator.finished)
        fleet.coordinator.stop()
        record = fleet.course.record(fleet.coordinator, wall_s=0.0, trace_digest=None)
        rows = [r for r in fleet.coordinator.store.updates() if r.counted]
    finally:
        fleet.close()
    curve = [r.accuracy for r in record.rounds]
    return curve, [r.payload_bytes for r in rows], {(r.round, r.device) for r in rows}, record
