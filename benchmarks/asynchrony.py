"""Asynchronous rounds against synchronous ones, on a fleet that lives its days: time to accuracy.

`python -m benchmarks.asynchrony` plays the same devices with the same cohort in both modes and
prints when each has reached the target, in virtual hours, and what it cost in seconds of training.
The file is `benchmarks/federations/diurnal-async.toml`.

The model is the one of `pilots.digits`, but a training step is said to cost what one on a photo
costs a MobileNetV2 (0.3 GFLOP forward, three times that for training) with ten photos for each of
the few digits that a device has: so phones train for minutes and boards for seconds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from coordinator import FederationConfig, load_config
from device_profiles import training_w_extra
from edge_sdk import DeviceInfo, NumpyTrainer
from fleet import FleetRun, StubCrypto
from fleet.virtual import VirtualFleet
from pilots.digits import Digits
from wire import Manifest, PotluckError

Mode = Literal["sync", "async"]
MODES: Final[tuple[Mode, ...]] = ("sync", "async")
FILE: Final = Path(__file__).parent / "federations" / "diurnal-async.toml"
TARGET: Final = 0.9
DEVICES: Final = 300
SEEDS: Final = 3
# For a look at it: one seed, an easier target.
QUICK: Final = (300, 1, 0.85)
HOURS_MAX: Final = 96.0
# One round is a noisy figure.
SMOOTH_ROUNDS: Final = 3
FLOPS_PER_EXAMPLE: Final = 9e9
_HOUR_S: Final = 3_600.0
_LOOK_EVERY_S: Final = 600.0


class HeavyDigits:
    """Digits, at the price of photos."""

    def __init__(self) -> None:
        self._digits = Digits()

    def model(self) -> Manifest:
        """15,010 parameters that cost what millions do."""
        return Manifest(self._digits.model().tensors, flops_per_example=FLOPS_PER_EXAMPLE)

    def trainer(self, device: DeviceInfo) -> NumpyTrainer:
        """The device's own share."""
        return self._digits.trainer(device)

    def test(self) -> NumpyTrainer:
        """Every fifth image, which no device has."""
        return self._digits.test()


task = HeavyDigits()


@dataclass(frozen=True)
class Course:
    """How one run went, up to the target.

    Args:
        hours: virtual hours until the target was reached; None if it was not.
        rounds: committed by then.
        trained: updates that devices made by then.
        counted: those of them that are in the model.
        training_h: hours of training that all devices have spent, also on what came to nothing.
        staleness: of counted updates, in versions, on average.
        phones: share of the counted updates that phones made, which train for minutes.
    """

    mode: Mode
    seed: int
    hours: float | None
    rounds: int
    trained: int
    counted: int
    training_h: float
    staleness: float
    phones: float
    wall_s: float


def reached_at_s(measured: Sequence[tuple[float, float]], target: float) -> float | None:
    """When the mean accuracy of three rounds in a row came to the target.

    Args:
        measured: (when, accuracy) of committed rounds, in order.
        target: 0 to 1.
    """
    for at in range(SMOOTH_ROUNDS, len(measured) + 1):
        last = measured[at - SMOOTH_ROUNDS : at]
        if sum(accuracy for _, accuracy in last) / SMOOTH_ROUNDS >= target:
            return last[-1][0]
    return None


def run(config: FederationConfig, devices: int, seed: int, target: float) -> Course:
    """Play one fleet until the target is reached, the rounds are over or four days have passed."""
    started_s = time.monotonic()
    fleet = VirtualFleet(
        FleetRun(config=config, task=task, count=devices, seed=seed, crypto=StubCrypto())
    )
    store = fleet.coordinator.store
    began_s = fleet.gateway.clock()
    reached_s: float | None = None
    classes = {device.name: device.profile.name for device in fleet.devices}
    seen = 0
    try:
        fleet.start()
        while not fleet.coordinator.finished and fleet.world.now_s < HOURS_MAX * _HOUR_S:
            fleet.world.run(
                fleet.world.now_s + _LOOK_EVERY_S,
                over=lambda seen=seen: fleet.coordinator.models.version > seen,  # type: ignore[misc] # bound at once
            )
            seen = fleet.coordinator.models.version
            reached_s = reached_at_s(
                [
                    (row["closed_at"], msgspec.msgpack.decode(row["metrics"])["accuracy"])
                    for row in store.rounds()
                    if row["status"] == "committed"
                ],
                target,
            )
            if reached_s is not None:
                break
        rows = [row for row in store.updates() if row.counted]
        behind = [row.collected_in - row.round for row in rows]
        return Course(
            mode=config.rounds.mode,
            seed=seed,
            hours=None if reached_s is None else (reached_s - began_s) / _HOUR_S,
            rounds=store.latest_version() or 0,
            trained=sum(device.counts.trained for device in fleet.devices),
            counted=len(rows),
            training_h=sum(
                device.counts.training_j / training_w_extra(device.profile)
                for device in fleet.devices
            )
            / _HOUR_S,
            staleness=statistics.fmean(behind) if behind else 0.0,
            phones=sum(classes[row.device].startswith("phone") for row in rows) / max(len(rows), 1),
            wall_s=time.monotonic() - started_s,
        )
    finally:
        fleet.close()


def async_table(
    quick: bool,  # noqa: FBT001 - the name of the option
    *,
    tell: Callable[[Course], None] = lambda _course: None,
) -> dict[str, object]:
    """Both modes, seed by seed.

    Args:
        quick: one seed, an easier target.
        tell: told of every run when it is over.

    Returns:
        The settings, every run, and `sooner`: for each seed hours of sync / hours of async, None
        where one of them has not reached the target.
    """
    devices, seeds, target = QUICK if quick else (DEVICES, SEEDS, TARGET)
    config = load_config(FILE)
    courses: list[Course] = []
    for seed in range(seeds):
        for mode in MODES:
            changed = msgspec.structs.replace(
                config, rounds=msgspec.structs.replace(config.rounds, mode=mode)
            )
            courses.append(run(changed, devices, seed, target))
            tell(courses[-1])
    hours = {(course.mode, course.seed): course.hours for course in courses}
    sooner = []
    for seed in range(seeds):
        sync_h, async_h = hours["sync", seed], hours["async", seed]
        sooner.append(None if sync_h is None or async_h is None else sync_h / async_h)
    return {
        "file": FILE.name,
        "devices": devices,
        "cohort": config.rounds.cohort,
        "target": target,
        "runs": [asdict(course) for course in courses],
        "sooner": sooner,
    }


def line(course: Course) -> str:
    """One run, in words and numbers."""
    when = "not reached" if course.hours is None else f"{course.hours:5.2f} h"
    return (
        f"seed {course.seed}  {course.mode:5}  {when:>11}  {course.rounds:3} rounds"
        f"  {course.counted:5} of {course.trained:5} updates counted"
        f"  {course.training_h:6.1f} h of training  staleness {course.staleness:.2f}"
        f"  phones {course.phones:4.0%}  ({course.wall_s:.0f} s)"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asynchrony", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, an easier target")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()

    def tell(course: Course) -> None:
        print(line(course), file=sys.stderr if arguments.json else sys.stdout, flush=True)

    try:
        table = async_table(arguments.quick, tell=tell)
    except PotluckError as error:
        print(f"benchmarks.asynchrony: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(table))
    else:
        ratios = table["sooner"]
        print(f"sync hours / async hours to {table['target']}: {ratios}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
