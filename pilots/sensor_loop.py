"""An app with a loop of its own: 100 readings a second, and potluck beside it.

`App` is what to copy: a sensor's loop that must not be late, an `ExampleStore` that it adds to, and
a `Device` that trains on those and uploads meanwhile. The sensor is an accelerometer that a person
wears, computed from a seed: gravity, a gait of the person's own, noise. The model says from one
second of it whether the person stands, walks or runs.

`python -m pilots.sensor_loop --token-file FILE --state-dir DIR --seconds 60` runs it, and says how
late the loop was; `python -m benchmarks.sensor_loop` compares that with a loop that is alone.
"""

import argparse
import json
import math
import os
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk import (
    Device,
    DeviceInfo,
    ExampleStore,
    FreshTrainer,
    NumpyTrainer,
    Policy,
    Trainer,
)
from wire import Manifest, Report

HERTZ: Final = 100
TICK_S: Final = 1.0 / HERTZ
# A window is a second, and begins half a second after the one before.
WINDOW: Final = 100
HOP: Final = 50
AXES: Final = 3
FEATURES: Final = WINDOW * AXES
ACTIVITIES: Final = ("stands", "walks", "runs")
# A person does one thing for so many readings; windows of one such spell are one group.
SPELL: Final = 10 * HERTZ
FIELDS: Final = {"x": ("float32", (FEATURES,)), "y": ("int64", ())}
_STEPS_PER_S: Final = (0.0, 1.8, 2.8)
_SWING: Final = (0.02, 0.35, 1.1)
_NOISE: Final = 0.05
_NOISES: Final = 4_096
_EMULATED: Final = 400
_MASK: Final = 2**64 - 1

Data = tuple[NDArray[np.float32], NDArray[np.int64]]


class Accelerometer:
    """Readings in units of g; the same seed is the same person.

    Args:
        seed: of the person.
    """

    def __init__(self, seed: int) -> None:
        words = np.random.Philox(key=seed & _MASK).random_raw(_NOISES + 8)
        uniform = (np.asarray(words, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self._noise = (_NOISE * (2.0 * uniform[8:] - 1.0)).tolist()
        self._pace = 1.0 + 0.3 * (float(uniform[0]) - 0.5)
        self._phase = [6.28 * float(u) for u in uniform[1:4]]
        self._tilt = 0.4 * (float(uniform[4]) - 0.5)
        self._first = int(words[5])

    def activity(self, tick: int) -> int:
        """What the person does at this reading."""
        mixed = (self._first ^ (tick // SPELL + 1) * 0x9E3779B97F4A7C15) & _MASK
        mixed = (mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9 & _MASK
        return (mixed >> 32) % len(ACTIVITIES)

    def read(self, tick: int) -> tuple[float, float, float]:
        """The reading number `tick`."""
        activity = self.activity(tick)
        angle = 2.0 * math.pi * _STEPS_PER_S[activity] * self._pace * tick * TICK_S
        swing = _SWING[activity]
        noise = self._noise
        return (
            self._tilt + 0.5 * swing * math.sin(angle / 2.0 + self._phase[0]) + noise[tick % 4093],
            0.4 * swing * math.sin(angle + self._phase[1]) + noise[(tick * 7) % 4091],
            1.0 + swing * math.sin(angle + self._phase[2]) + noise[(tick * 13) % 4079],
        )


def windows(seed: int, count: int, *, start: int = 0) -> Data:
    """Windows of a person without waiting for them: for emulated devices, and to begin with."""
    sensor = Accelerometer(seed)
    ticks = [sensor.read(tick) for tick in range(start, start + WINDOW + HOP * (count - 1))]
    values = np.array(ticks, np.float32)
    begins = range(0, HOP * count, HOP)
    x = np.stack([values[begin : begin + WINDOW].ravel() for begin in begins])
    y = np.array([sensor.activity(start + begin + WINDOW - 1) for begin in begins], np.int64)
    return x, y


class Gaits:
    """The task.

    Args:
        hidden: units of the hidden layer.
        store: the app's own examples; without, a device is emulated.
    """

    def __init__(self, hidden: int = 55, store: ExampleStore | None = None) -> None:
        self._hidden = hidden
        self._store = store

    def model(self) -> Manifest:
        """A perceptron of 300-55-3: 16,723 parameters."""
        return NumpyTrainer.manifest(FEATURES, self._hidden, len(ACTIVITIES), seed=11)

    def trainer(self, device: DeviceInfo) -> Trainer:
        """Over what the app has collected by then."""
        store = self._store
        if store is not None:
            return FreshTrainer(
                lambda: NumpyTrainer(*store.train(), holdout=store.holdout(), seed=device.seed)
            )
        x, y = windows(device.seed, _EMULATED)
        # Neighbours overlap: whole spells are held out, as a store does with groups.
        held = np.arange(_EMULATED) * HOP // SPELL % 5 == 4  # noqa: PLR2004 - a fifth
        return NumpyTrainer(x[~held], y[~held], holdout=(x[held], y[held]), seed=device.seed)


@dataclass(frozen=True)
class Lateness:
    """How a loop kept its time.

    A deadline is missed when a reading is not done before the next one is due. `add` is what the
    store takes of the loop's time.
    """

    ticks: int
    missed: int
    gap_max_ms: float
    gap_p999_ms: float
    late_max_ms: float
    late_p50_ms: float
    add_max_ms: float
    add_p50_us: float


class App:
    """The loop, and what it adds to.

    Args:
        seed: of the person.
        store: what gets windows; None for a loop that is alone.
        hop: readings from a window to the next.
    """

    def __init__(self, seed: int, store: ExampleStore | None, *, hop: int = HOP) -> None:
        self._sensor = Accelerometer(seed)
        self._store = store
        self._hop = hop

    def run(self, seconds: float) -> Lateness:
        """Read, 100 times a second, for so many seconds."""
        window: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
        begun, ended, added = array("d"), array("d"), array("d")
        start_s = time.perf_counter() + TICK_S
        for tick in range(int(seconds * HERTZ)):
            wait_s = start_s + tick * TICK_S - time.perf_counter()
            if wait_s > 0.0:
                time.sleep(wait_s)
            begun.append(time.perf_counter())
            window.append(self._sensor.read(tick))
            if self._store is not None and tick % self._hop == 0 and len(window) == WINDOW:
                x = np.array(window, np.float32).ravel()
                before_s = time.perf_counter()
                self._store.add(x, self._sensor.activity(tick), group=f"spell-{tick // SPELL}")
                added.append(time.perf_counter() - before_s)
            ended.append(time.perf_counter())
        spent = np.array(added or [0.0])
        return _lateness(np.array(begun) - start_s, np.array(ended) - start_s, spent)


def _lateness(
    begun: NDArray[np.float64], ended: NDArray[np.float64], spent: NDArray[np.float64]
) -> Lateness:
    due = np.arange(len(begun)) * TICK_S
    gaps, late = 1e3 * np.diff(begun), 1e3 * (begun - due)
    return Lateness(
        ticks=len(begun),
        missed=int((ended > due + TICK_S).sum()),
        gap_max_ms=float(gaps.max()),
        gap_p999_ms=float(np.quantile(gaps, 0.999)),
        late_max_ms=float(late.max()),
        late_p50_ms=float(np.median(late)),
        add_max_ms=1e3 * float(spent.max()),
        add_p50_us=1e6 * float(np.median(spent)),
    )


def potluck_app(
    token_file: Path,
    state_dir: Path,
    *,
    seconds: float,
    seed: int = 0,
    hidden: int = 55,
    history: int = 0,
    policy: Policy | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> Lateness:
    """The whole app: ten lines, of which the loop knows one.

    `history` windows are in the store before it begins, as if the app had run before.
    """
    store = ExampleStore(state_dir / "examples.sqlite", FIELDS, examples_max=5_000)
    for x, y in zip(*windows(seed, history), strict=True) if history else ():
        store.add(x, y)
    device = Device(
        Gaits(hidden, store), state_dir, policy=policy, examples=store, on_report=on_report
    )
    device.enroll(token_file)
    device.start()
    try:
        return App(seed, store).run(seconds)
    finally:
        device.stop()
        store.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the app for a while; print how late its loop was, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m pilots.sensor_loop", description=__doc__)
    parser.add_argument("--token-file", type=Path, help="of potluck enroll; none: the loop alone")
    parser.add_argument("--state-dir", type=Path, default=Path("sensor-loop"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=55)
    parser.add_argument("--history", type=int, default=0, help="windows to begin with")
    parser.add_argument("--low-priority", action="store_true", help="Policy.low_priority")
    parser.add_argument("--switch-interval-s", type=float, help="of Python, instead of 5 ms")
    parser.add_argument(
        "--collect", action="store_true", help="no device: a window for every reading"
    )
    parser.add_argument(
        "--real-time", action="store_true", help="Linux, root: before all other programs"
    )
    options = parser.parse_args(arguments)
    if options.real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    if options.switch_interval_s:
        sys.setswitchinterval(options.switch_interval_s)
    said: dict[str, int] = {}

    def count(report: Report) -> None:
        said[report.what] = said.get(report.what, 0) + 1

    if options.collect:
        with ExampleStore(options.state_dir / "examples.sqlite", FIELDS) as store:
            lateness = App(options.seed, store, hop=1).run(options.seconds)
    elif options.token_file is None:
        lateness = App(options.seed, None).run(options.seconds)
    else:
        lateness = potluck_app(
            options.token_file,
            options.state_dir,
            seconds=options.seconds,
            seed=options.seed,
            hidden=options.hidden,
            history=options.history,
            policy=Policy(low_priority=options.low_priority),
            on_report=count,
        )
    result: dict[str, Any] = {**asdict(lateness), "reports": said}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


task = Gaits()
# A million parameters: what a model costs that is large for a device.
big = Gaits(hidden=3_300)

if __name__ == "__main__":
    sys.exit(main())
