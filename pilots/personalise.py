"""One head for all, or one each: digits on devices that see few of the ten digits.

`python -m pilots.personalise` trains the same perceptron three ways and prints how often each is
right on the devices' own hold-outs: everything shared; the last layer personal (FedPer, Arivazhagan
et al. 2019); and that, with each head fine-tuned afterwards as `Device.fine_tune` does it.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from edge_sdk import DeviceInfo, EvalResult, FineTuned, Model, NumpyTrainer
from edge_sdk.fine_tuning import FineTuneWork
from pilots.digits import Digits
from wire import Manifest, Plan, Tensors

DEVICES: Final = 30
ROUNDS: Final = 10
SKEW: Final = "dirichlet:0.1"
HEAD: Final = ("w1", "b1")
PLAN: Final = Plan(local_epochs=2, batch=10, learning_rate=0.1)
FINE_TUNING: Final = Plan(local_epochs=5, batch=10, learning_rate=0.05)


class PersonalDigits(Digits):
    """The digits with a last layer of each device's own. It has no test data in one place."""

    test = None  # type: ignore[assignment] # a personal model has no global test

    def model(self) -> Manifest:
        """As `Digits`, the last layer personal."""
        return Manifest(super().model().tensors, parts=dict.fromkeys(HEAD, "personal"))


task = PersonalDigits()


@dataclass(frozen=True)
class Rightness:
    """Accuracy over all hold-outs: everything shared, a head each, that fine-tuned.

    `kept` is how many of the devices kept their fine-tuned head.
    """

    shared: float
    personal: float
    fine_tuned: float
    devices: int
    kept: int
    holdout: int


def compare(*, devices: int = DEVICES, rounds: int = ROUNDS, skew: str = SKEW) -> Rightness:
    """Train all three; FedAvg, every device in every round."""
    _, alike = _federate(Digits(), devices, rounds, skew)
    models, own = _federate(task, devices, rounds, skew)
    tuned, kept = [], 0
    for model, trainer in zip(models, _trainers(devices, skew), strict=True):
        result = FineTuneWork(
            FINE_TUNING,
            task.model(),
            model,
            lambda trainer=trainer: trainer,  # type: ignore[misc]
        ).run()
        if not isinstance(result, FineTuned):
            raise result
        tuned.append(result.after if result.kept else result.before)
        kept += result.kept
    return Rightness(
        shared=_pooled(alike),
        personal=_pooled(own),
        fine_tuned=_pooled(tuned),
        devices=devices,
        kept=kept,
        holdout=sum(result.num_examples for result in alike),
    )


def _trainers(devices: int, skew: str) -> list[NumpyTrainer]:
    return [
        task.trainer(DeviceInfo(index=number, count=devices, seed=number, partition=skew))
        for number in range(devices)
    ]


def _federate(
    of: Digits, devices: int, rounds: int, skew: str
) -> tuple[list[Model], list[EvalResult]]:
    """Rounds of FedAvg over the shared tensors; each device's model, and what it says of it."""
    manifest, trainers = of.model(), _trainers(devices, skew)
    shared: Tensors = dict(manifest.tensors)
    names = [spec.name for spec in manifest.schema.shared.tensors]
    personal: list[Tensors] = [{} for _ in trainers]

    def model(number: int) -> Model:
        return Model(0, manifest.complete(personal[number], shared))

    for round_number in range(rounds):
        plan = Plan(
            local_epochs=PLAN.local_epochs,
            batch=PLAN.batch,
            learning_rate=PLAN.learning_rate,
            seed=round_number,
        )
        results = [
            trainer.train(model(number), plan, stop=lambda: False)
            for number, trainer in enumerate(trainers)
        ]
        personal = [
            {name: a for name, a in result.tensors.items() if name not in names}
            for result in results
        ]
        weights = np.array([result.num_examples for result in results], np.float64)
        shared = {
            name: np.average([r.tensors[name] for r in results], axis=0, weights=weights).astype(
                np.float32
            )
            for name in names
        }
    models = [model(number) for number in range(devices)]
    return models, [
        trainer.evaluate(own, PLAN, stop=lambda: False)
        for own, trainer in zip(models, trainers, strict=True)
    ]


def _pooled(results: list[EvalResult]) -> float:
    right = sum(r.metrics.get("accuracy", 0.0) * r.num_examples for r in results)
    return right / sum(r.num_examples for r in results)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(compare())) + "\n")
