"""An app that embeds the SDK and does nothing else, for others to measure from outside.

`python benchmarks/footprint_device.py TASK STATE_DIR` runs one device. It prints a JSON object for
each report and, for each line on stdin, one of what the process has spent; the end of stdin ends
it. Run by its path: as a module it would load what `benchmarks` loads.

The tasks are made up of noise, so that nothing has to be read: a perceptron of 17,260 parameters,
and one of a million.
"""

import argparse
import json
import sys
import time
from typing import Any, Final

import numpy as np

from edge_sdk import (
    Device,
    DeviceInfo,
    EvalResult,
    Model,
    NumpyTrainer,
    Policy,
    TrainResult,
    load_task,
)
from edge_sdk.trainer import Stop
from wire import Manifest, Plan, Report

EXAMPLES: Final = 400
HELD_OUT: Final = 50
CLASSES: Final = 10
_SEED: Final = 11

_trainer_cpu_s = 0.0


class Timed:
    """A trainer, and the CPU seconds that its own thread has spent in it."""

    def __init__(self, trainer: NumpyTrainer) -> None:
        self._trainer = trainer

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """As the trainer does."""
        began_s = time.thread_time()
        try:
            return self._trainer.train(model, plan, stop=stop)
        finally:
            _note_trainer(time.thread_time() - began_s)

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:
        """As the trainer does."""
        began_s = time.thread_time()
        try:
            return self._trainer.evaluate(model, plan, stop=stop)
        finally:
            _note_trainer(time.thread_time() - began_s)


def _note_trainer(seconds: float) -> None:
    global _trainer_cpu_s  # noqa: PLW0603 - one device, one training thread
    _trainer_cpu_s += seconds


class Perceptron:
    """Learns classes of noise.

    Args:
        sizes: features, hidden, classes.
    """

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes

    def model(self) -> Manifest:
        """He's weights."""
        return NumpyTrainer.manifest(*self._sizes, seed=_SEED)

    def trainer(self, device: DeviceInfo) -> Timed:  # noqa: ARG002 - the one device there is
        """Examples around a centre for each class, most of their features zero, as images are."""
        chance = np.random.default_rng(_SEED)
        y = np.arange(EXAMPLES) % CLASSES
        centres = np.maximum(chance.standard_normal((CLASSES, self._sizes[0])), 0.0)
        x = centres[y] + 0.5 * np.maximum(chance.standard_normal((EXAMPLES, self._sizes[0])), 0.0)
        x = x.astype(np.float32)
        return Timed(NumpyTrainer(x[HELD_OUT:], y[HELD_OUT:], holdout=(x[:HELD_OUT], y[:HELD_OUT])))


small = Perceptron(64, 230, CLASSES)
million = Perceptron(784, 1_258, CLASSES)


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _spent() -> dict[str, float]:
    """CPU seconds of every thread and of trainers alone, and how often a thread went to sleep."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        naps = 0
    else:
        naps = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    return {"cpu_s": time.process_time(), "trainer_s": _trainer_cpu_s, "naps": naps}


def _report(report: Report) -> None:
    _say(event=report.what, detail=report.detail, **_spent())


def main() -> int:
    """Run a device until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("state_dir")
    parser.add_argument("--tokens")
    parser.add_argument("--check-in-s", type=float)
    options = parser.parse_args()
    policy = Policy() if options.check_in_s is None else Policy(check_in_s=options.check_in_s)
    task = load_task(f"__main__:{options.task}")
    device = Device(task, options.state_dir, policy=policy, on_report=_report)
    if options.tokens is not None:
        device.enroll(options.tokens)
    device.start()
    _say(event="started", **_spent())
    for _line in sys.stdin:
        _say(event="spent", **_spent())
    device.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
