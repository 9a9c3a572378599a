"""How fast LiteRT trains through potluck, beside the bare interpreter, NumPy and PyTorch.

All take turns in one run, some steps each, so that what the machine does beside hits all alike.
Times are CPU time of the one thread that trains. PyTorch runs in a process of its own, in the
environment that `make setup-torch` makes; without that it is left out.
"""

import contextlib
import functools
import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import msgspec
import numpy as np

from coordinator import FederationConfig, load_config
from edge_sdk import LiteRTTrainer, Model, NumpyTrainer
from edge_sdk._litert_trust import runtime
from fleet import FleetRun, StubCrypto, run_virtual
from litert_author import Sequential, conv, dense, flatten, max_pool, relu
from pilots import digits, digits_litert
from wire import Manifest, Plan

ROOT: Final = Path(__file__).parents[1]
TORCH: Final = ROOT / ".venv-torch" / "bin" / "python"
FILE: Final = Path(__file__).parent / "federations" / "digits-litert.toml"
TURNS: Final = 15
DEVICES: Final = 1_000
SEEDS: Final = (1, 2, 3)
_RATE: Final = 0.01
_FIRST: Final = NumpyTrainer.manifest(64, 128, 10, seed=1).tensors

MODELS: Final = {
    "mlp": Sequential(
        (64,),
        [dense(128, name="hidden"), relu(), dense(10, name="scores")],
        batch=16,
        initial={
            "hidden/kernel": _FIRST["w0"],
            "hidden/bias": _FIRST["b0"],
            "scores/kernel": _FIRST["w1"],
            "scores/bias": _FIRST["b1"],
        },
    ),
    "cnn": Sequential(
        (28, 28, 1),
        [
            *(conv(16, 3), relu(), max_pool(2), conv(32, 3), relu(), max_pool(2)),
            *(flatten(), dense(125), relu(), dense(10)),
        ],
        batch=20,
    ),
}
# Batches of the data, and how often a turn goes through them: some hundredths of a second each.
BATCHES: Final = {"mlp": 100, "cnn": 10}
EPOCHS: Final = {"mlp": 5, "cnn": 1}


class Row(msgspec.Struct, frozen=True):
    """One way to train one model: steps a second, in the median over all turns.

    `against` has the medians of this one's speed over each other one's, turn by turn.
    """

    model: str
    parameters: int
    batch: int
    by: str
    steps_per_s: float
    against: dict[str, float]


class Table(msgspec.Struct, frozen=True):
    """What was measured.

    `devices_s` is what `devices` virtual devices take for 10 steps each on pooled interpreters;
    `author_s` is how long the CNN takes from the layer list to file and probe, in the median.
    """

    runtime: str
    torch: str
    rows: list[Row]
    devices: int
    devices_s: float
    author_s: float
    tensorflow: bool


class Accuracy(msgspec.Struct, frozen=True):
    """A federation of the digits by one trainer: accuracy on the test set, by seed."""

    task: str
    rounds: int
    accuracy: list[float]
    mean: float
    points_from_numpy: float


def speed_table(*, quick: bool) -> Table:
    """Measure all of it."""
    turns = 3 if quick else TURNS
    rows: list[Row] = []
    with _torch() as ask:
        version = str(ask("mlp", 1)["torch"]) if ask else ""
        for name, model in MODELS.items():
            contestants = _contestants(name, model.manifest(), ask)
            rows += _race(name, model.manifest(), contestants, turns)
    name, _class = runtime()
    return Table(
        runtime=name,
        torch=version,
        rows=rows,
        devices=DEVICES,
        devices_s=_devices_s(turns),
        author_s=median(_author_s() for _ in range(turns)),
        tensorflow=importlib.util.find_spec("tensorflow") is not None,
    )


def _race(
    name: str, manifest: Manifest, contestants: dict[str, Callable[[int], float]], turns: int
) -> list[Row]:
    steps = BATCHES[name] * EPOCHS[name]
    for train in contestants.values():
        train(steps)
    seconds = {by: [0.0] * turns for by in contestants}
    for turn in range(turns):
        for by, train in contestants.items():
            seconds[by][turn] = train(steps)
    artefact = manifest.artefact
    return [
        Row(
            model=name,
            parameters=manifest.schema.parameters,
            batch=artefact.info.batch if artefact else 0,
            by=by,
            steps_per_s=median(steps / s for s in seconds[by]),
            against={
                other: median(
                    theirs / ours for ours, theirs in zip(seconds[by], seconds[other], strict=True)
                )
                for other in contestants
                if other != by
            },
        )
        for by in contestants
    ]


def _contestants(
    name: str, manifest: Manifest, ask: Callable[[str, int], dict[str, Any]] | None
) -> dict[str, Callable[[int], float]]:
    artefact = manifest.artefact
    if artefact is None:
        raise TypeError("a built model has an artefact")
    info = artefact.info
    chance = np.random.default_rng(1)
    batches = BATCHES[name]
    x = chance.random((batches * info.batch, *info.x_shape)).astype(np.float32)
    y = chance.integers(0, info.classes, len(x)).astype(np.int32)
    _name, interpreter = runtime()
    opened = interpreter(model_content=artefact.data, num_threads=1)
    opened.get_signature_runner("set_parameters")(**manifest.tensors)
    step = opened.get_signature_runner("train")
    weights, rate = np.ones(info.batch, np.float32), np.float32(_RATE)

    def bare(steps: int) -> float:
        began_s = time.thread_time()
        for number in range(steps):
            start = number % batches * info.batch
            end = start + info.batch
            step(x=x[start:end], y=y[start:end], w=weights, lr=rate)
        return time.thread_time() - began_s

    def through(trainer: Any, model: Model, steps: int) -> float:
        """As many epochs as make the steps."""
        plan = Plan(local_epochs=steps // batches, batch=info.batch, learning_rate=_RATE)
        began_s = time.thread_time()
        trainer.train(model, plan, stop=lambda: False)
        return time.thread_time() - began_s

    found: dict[str, Callable[[int], float]] = {
        "bare interpreter": bare,
        "LiteRTTrainer": functools.partial(
            through, LiteRTTrainer(manifest, (x, y)), Model(0, manifest.tensors)
        ),
    }
    if name == "mlp":
        found["NumpyTrainer"] = functools.partial(through, NumpyTrainer(x, y), Model(0, _FIRST))
    if ask:
        found["torch"] = lambda steps: float(ask(name, steps)["seconds"])
    return found


def _devices_s(turns: int) -> float:
    """Seconds of 1,000 virtual devices, each with its own data, weights and 10 steps."""
    manifest = MODELS["mlp"].manifest()
    chance = np.random.default_rng(2)
    x = chance.random((160, 64)).astype(np.float32)
    y = chance.integers(0, 10, 160)
    trainers = [LiteRTTrainer(manifest, (x, y), seed=seed) for seed in range(DEVICES)]
    plan = Plan(local_epochs=1, batch=16, learning_rate=_RATE)
    model = Model(0, manifest.tensors)
    seconds = []
    for _ in range(min(turns, 5)):
        began_s = time.thread_time()
        for trainer in trainers:
            trainer.train(model, plan, stop=lambda: False)
        seconds.append(time.thread_time() - began_s)
    return median(seconds)


def _author_s() -> float:
    again = MODELS["cnn"]
    fresh = Sequential(again.input_shape, again.layers, batch=again.batch)
    began_s = time.thread_time()
    fresh.manifest()
    return time.thread_time() - began_s


@contextlib.contextmanager
def _torch() -> Iterator[Callable[[str, int], dict[str, Any]] | None]:
    """A process with PyTorch that trains when asked; None where there is none."""
    if not TORCH.exists():
        yield None
        return
    worker = subprocess.Popen(  # noqa: S603 - our own script
        [TORCH, Path(__file__).with_name("litert_torch.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        if worker.stdin is None or worker.stdout is None:
            raise RuntimeError("the process with PyTorch cannot be spoken to")
        to, back = worker.stdin, worker.stdout

        def ask(model: str, steps: int) -> dict[str, Any]:
            to.write(json.dumps({"model": model, "steps": steps}) + "\n")
            to.flush()
            answer: dict[str, Any] = json.loads(back.readline())
            return answer

        yield ask
        to.close()


def accuracy_table(*, quick: bool) -> list[Accuracy]:
    """The digits in a federation by each trainer, in virtual time."""
    config = load_config(FILE)
    if quick:
        shorter = msgspec.structs.replace(config.rounds, count=3)
        config = msgspec.structs.replace(config, rounds=shorter)
    tasks = {
        "NumPy MLP": digits.task,
        "LiteRT MLP": digits_litert.mlp,
        "LiteRT CNN": digits_litert.cnn,
    }
    found = {
        name: [_accuracy(config, task, seed) for seed in SEEDS[: 1 if quick else None]]
        for name, task in tasks.items()
    }
    first = fmean(found["NumPy MLP"])
    return [
        Accuracy(
            task=name,
            rounds=config.rounds.count,
            accuracy=accuracy,
            mean=fmean(accuracy),
            points_from_numpy=100.0 * (fmean(accuracy) - first),
        )
        for name, accuracy in found.items()
    ]


def _accuracy(config: FederationConfig, task: Any, seed: int) -> float:
    run = run_virtual(FleetRun(config=config, task=task, count=30, seed=seed, crypto=StubCrypto()))
    return run.totals.accuracy or 0.0


def lines(table: Table) -> list[str]:
    """The speeds for people."""
    text = [
        f"{table.runtime}, torch {table.torch or 'not there (make setup-torch)'}; CPU time",
        f"{'model':6}{'parameters':>11}{'batch':>6}  {'by':18}{'steps/s':>10}  against",
    ]
    text += [
        f"{r.model:6}{r.parameters:>11,}{r.batch:>6}  {r.by:18}{r.steps_per_s:>10,.0f}  "
        + ", ".join(f"{other} {ratio:.2f}x" for other, ratio in r.against.items())
        for r in table.rows
    ]
    text.append(
        f"{table.devices:,} virtual devices x 10 steps of the MLP: {table.devices_s:.2f} s;"
        f" the CNN is built in {table.author_s:.2f} s, TensorFlow"
        f" {'importable' if table.tensorflow else 'not importable'}"
    )
    return text


def accuracy_lines(rows: Sequence[Accuracy]) -> list[str]:
    """The federations for people."""
    return [
        f"{row.task:12}{row.rounds:>4} rounds  accuracy {100 * row.mean:.1f}%"
        f" ({', '.join(f'{100 * a:.1f}' for a in row.accuracy)}),"
        f" {row.points_from_numpy:+.2f} points from NumPy"
        for row in rows
    ]
