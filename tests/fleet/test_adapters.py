"""A federation of adapters: what is frozen, personal and shared, from the file to the export."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from coordinator import load_config
from edge_sdk import DeviceInfo, LiteRTTrainer, Model, TrainResult
from edge_sdk.trainer import Stop
from fleet import FleetRun, StubCrypto
from fleet.virtual import VirtualFleet
from litert_author import Sequential, dense, embedding, export, last_step, lora, transformer_block
from tests.support.litert_runtimes import litert
from wire import Manifest, Plan

OWN = "own/kernel"
FILE = """
[federation]
name = "adapters"
task = "tests.fleet.test_adapters:task"
[rounds]
count = 4
cohort = 4
batch = 8
local_epochs = 2
learning_rate = 0.3
[uplink]
codec = "raw"
[fleet]
mix = {pi-4 = 1.0}
"""
MODEL = Sequential(
    (6,),
    [
        embedding(12, 16, part="frozen"),
        transformer_block(2, 32, causal=True, adapter=lora(2), part="frozen"),
        last_step(),
        dense(12, adapter=lora(2), name="scores", part="frozen"),
        dense(12, name="own", part="personal"),
    ],
    batch=8,
    seed=3,
)


class Watched(LiteRTTrainer):
    """Remembers the personal layer that it was given and the one that it made."""

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        result = super().train(model, plan, stop=stop)
        self.seen = [*getattr(self, "seen", []), (model.tensors[OWN].copy(), result.tensors[OWN])]
        return result


class Tuned:
    """The next in a row of numbers; half of the devices count in twos."""

    def __init__(self) -> None:
        self.trainers: dict[int, Watched] = {}

    def model(self) -> Manifest:
        return MODEL.manifest()

    def trainer(self, device: DeviceInfo) -> LiteRTTrainer:
        first = np.random.default_rng(device.index).integers(0, 12, 24)
        rows = (first[:, None] + np.arange(7) * (1 + device.index % 2)) % 12
        trainer = Watched(MODEL.manifest(), (rows[:, :-1], rows[:, -1]), seed=device.seed)
        return self.trainers.setdefault(device.index, trainer)


@pytest.mark.slow
def test_adapters_alone_travel_and_the_export_answers_with_them(tmp_path: Path) -> None:
    file = tmp_path / "federation.toml"
    file.write_text(FILE, encoding="utf-8")
    task = Tuned()
    run = FleetRun(load_config(file), task, count=6, seed=1, crypto=StubCrypto())
    fleet = VirtualFleet(run, lives_days=False, clocks_are_right=True)
    try:
        fleet.start()
        fleet.world.run(86_400.0, over=lambda: fleet.coordinator.finished)
        served, rows = fleet.coordinator.models.served, fleet.coordinator.store.updates()
        travels = fleet.coordinator.models.schema
    finally:
        fleet.close()
    first = MODEL.manifest().tensors
    # The base is constants of the file: neither sent nor among the tensors at all.
    assert set(served) == {spec.name for spec in travels.tensors}
    assert set(served) == {name for name in first if "lora" in name}
    assert not np.array_equal(served["scores/lora_b"], first["scores/lora_b"])
    raw = 4 * travels.parameters
    assert rows
    assert all(raw <= row.payload_bytes <= raw + 1_000 for row in rows)
    # A personal layer goes on where the device left it, and is nobody else's.
    twice = [t.seen for t in task.trainers.values() if len(getattr(t, "seen", [])) > 1]
    assert twice
    for seen in twice:
        for (_given, made), (given, _made) in pairwise(seen):
            np.testing.assert_array_equal(made, given)
    assert not np.array_equal(twice[0][-1][1], twice[1][-1][1])
    # What a device exports has base, adapters and its own layer in it.
    own = dict(first) | served | {OWN: twice[0][-1][1]}
    artefact = MODEL.artefact()
    x = np.arange(48, dtype=np.int32).reshape(8, 6) % 12
    given = {name: own[name] for name in first}
    expected = litert(artefact.data, [("set_parameters", given), ("infer", {"x": x})])[1]["output"]
    (found,) = litert(export(artefact, own, batch=8), [("serving_default", {"x": x})])
    np.testing.assert_allclose(found["output"], expected, rtol=1e-4, atol=1e-5)
    base = litert(artefact.data, [("set_parameters", dict(first)), ("infer", {"x": x})])[1]
    assert np.abs(found["output"] - base["output"]).max() > 0.01
