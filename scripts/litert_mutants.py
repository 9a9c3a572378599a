"""Damage every shipped trainable file, hundreds of times, and see what becomes of the host.

    python scripts/litert_mutants.py make DIRECTORY   # in .venv: needs the schema
    python scripts/litert_mutants.py run DIRECTORY    # on the interpreter that is installed there

A mutant has bytes flipped, its end cut off, or a change that the schema allows: an operator's
input, option or kind, a shape, a constant, a name. Its hash, its length and its list of operators
are written anew, so that only what looks deeper can find it. Each then goes the way of a file from
the network: `check_file`, the trial, and, if both let it pass, training in the host. The claim: a
typed error, or results equal to those of the file it was made from; never a dead host.

The trial runs in a fork of a process that has loaded the interpreter, in place of a new process;
what it runs there is the same. The host is a fork too, which may die without ending the count.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edge_sdk import Model, _litert_trust, litert_trial
from edge_sdk._litert_file import check_file
from edge_sdk.litert_errors import ArtefactRejectedError
from edge_sdk.litert_files import load_manifest
from edge_sdk.litert_trainer import LiteRTTrainer
from wire import Artefact, Manifest, Plan
from wire.artefact import ArtefactInfo, probe_batch

SHIPPED: Final = Path(__file__).parents[1] / "pilots" / "litert"
MODELS: Final = ("digits_mlp", "digits_cnn", "next_char")
# A parameter of each of those that Adam trains.
ADAPTIVE: Final = frozenset({"embedding_1/table"})
COUNT: Final = 500
_SECONDS: Final = 20
_MEMORY: Final = 268_435_456
_GOOD: Final = ("read", "tried", "died on trial", "equal")
# What the host's fork says at its end, above what Python or a signal says.
_EQUAL, _DIFFERENT, _TYPED, _RAISED = 40, 41, 42, 43


def main() -> int:
    """Make or run mutants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=COUNT, help=f"of each model ({COUNT})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "make":
        for name in MODELS:
            make(name, arguments.directory, arguments.count, arguments.seed)
        return 0
    found = {name: run(name, arguments.directory) for name in MODELS}
    bad = [entry for outcome in found.values() for entry in outcome["bad"]]
    if arguments.json:
        print(json.dumps(found))
    else:
        print(litert_trial.interpreter_class()[0])
        for name, outcome in found.items():
            print(f"{name:12} {outcome['counts']}  {outcome['seconds']:.0f} s")
        for entry in bad:
            print(f"FAILED: {entry}")
    return 1 if bad else 0


# --- making ---------------------------------------------------------------------------------------


def make(name: str, directory: Path, count: int, seed: int) -> None:
    """Write a model's mutants, numbered, with the kind of damage in their names."""
    directory.mkdir(parents=True, exist_ok=True)
    data = (SHIPPED / f"{name}.tflite").read_bytes()
    for number in range(count):
        chance = np.random.Generator(np.random.Philox(key=[seed, number]))
        kind = ("flip", "cut", "change")[(0, 0, 1, 2, 2, 2)[number % 6]]
        if kind == "change":
            damaged, what = changed(data, chance)
        elif kind == "flip":
            damaged, what = flipped(data, chance), "flip"
        else:
            damaged, what = data[: int(chance.integers(0, len(data)))], "cut"
        (directory / f"{name}.{number:04}.{what}").write_bytes(damaged)


def flipped(data: bytes, chance: np.random.Generator) -> bytes:
    """One to eight bytes are others, half of the time where the tables are and not the weights."""
    damaged = bytearray(data)
    for _ in range(int(chance.integers(1, 9))):
        damaged[int(chance.integers(0, len(data)))] ^= int(chance.integers(1, 256))
    return bytes(damaged)


def changed(data: bytes, chance: np.random.Generator) -> tuple[bytes, str]:
    """One change that the schema allows, and what it was."""
    import flatbuffers  # noqa: PLC0415 - of the extra litert-author
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - as above

    while True:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        change = CHANGES[int(chance.integers(0, len(CHANGES)))]
        if not change(model, chance):
            continue
        builder = flatbuffers.Builder(len(data))
        try:
            builder.Finish(model.Pack(builder), b"TFL3")
        except Exception:  # noqa: BLE001, S112 - a number that does not fit its field: another change
            continue
        packed = bytes(builder.Output())
        if packed != data:
            return packed, change.__name__.strip("_")


def _pick(items: Any, chance: np.random.Generator) -> Any:
    return items[int(chance.integers(0, len(items)))] if len(items) else None


def _operator(model: Any, chance: np.random.Generator) -> tuple[Any, Any]:
    graph = _pick(model.subgraphs, chance)
    return graph, _pick(graph.operators, chance)


def _input(model: Any, chance: np.random.Generator) -> bool:
    graph, operator = _operator(model, chance)
    if operator.inputs is None or not len(operator.inputs):
        return False
    inputs = [int(index) for index in operator.inputs]
    inputs[int(chance.integers(0, len(inputs)))] = int(chance.integers(-1, len(graph.tensors) + 2))
    operator.inputs = inputs
    return True


def _inputs_fewer(model: Any, chance: np.random.Generator) -> bool:
    _graph, operator = _operator(model, chance)
    if operator.inputs is None or not len(operator.inputs):
        return False
    operator.inputs = list(operator.inputs)[:-1]
    return True


def _option(model: Any, chance: np.random.Generator) -> bool:
    _graph, operator = _operator(model, chance)
    fields = [
        name
        for name, value in vars(operator.builtinOptions or object).items()
        if isinstance(value, (int, float, bool)) and not name.startswith("_")
    ]
    if not fields:
        return False
    name = _pick(fields, chance)
    value = getattr(operator.builtinOptions, name)
    setattr(operator.builtinOptions, name, type(value)(_pick([0, 1, 2, 3, 100, value + 1], chance)))
    return True


def _kind(model: Any, chance: np.random.Generator) -> bool:
    _graph, operator = _operator(model, chance)
    operator.opcodeIndex = int(chance.integers(0, len(model.operatorCodes) + 1))
    return True


def _code(model: Any, chance: np.random.Generator) -> bool:
    code = _pick(model.operatorCodes, chance)
    code.builtinCode = int(chance.integers(0, 210))
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    return True


def _version(model: Any, chance: np.random.Generator) -> bool:
    _pick(model.operatorCodes, chance).version = int(chance.integers(0, 12))
    return True


def _shape(model: Any, chance: np.random.Generator) -> bool:
    tensor = _pick(_pick(model.subgraphs, chance).tensors, chance)
    shape = list(tensor.shape) if tensor.shape is not None else []
    if not shape or chance.integers(0, 4) == 0:
        shape.append(int(chance.integers(1, 4)))
    else:
        shape[int(chance.integers(0, len(shape)))] = int(
            _pick([0, 1, 2, 7, 64, 4096, 2**30, -1], chance)
        )
    tensor.shape = shape
    return True


def _type(model: Any, chance: np.random.Generator) -> bool:
    _pick(_pick(model.subgraphs, chance).tensors, chance).type = int(chance.integers(0, 18))
    return True


def _constant(model: Any, chance: np.random.Generator) -> bool:
    buffer = _pick([b for b in model.buffers if b.data is not None and len(b.data)], chance)
    values = np.array(buffer.data, np.uint8)
    if len(values) % 4 == 0 and chance.integers(0, 2):
        numbers = values.view(np.int32)
        numbers[int(chance.integers(0, len(numbers)))] = int(
            _pick([-1, 0, 1, 2, 3, 5, 100, -(2**31)], chance)
        )
    else:
        values[int(chance.integers(0, len(values)))] ^= np.uint8(1 << int(chance.integers(0, 8)))
    buffer.data = values
    return True


def _constant_length(model: Any, chance: np.random.Generator) -> bool:
    buffer = _pick([b for b in model.buffers if b.data is not None and len(b.data)], chance)
    buffer.data = np.array(buffer.data, np.uint8)[: int(chance.integers(0, len(buffer.data)))]
    return True


def _buffer(model: Any, chance: np.random.Generator) -> bool:
    tensor = _pick(_pick(model.subgraphs, chance).tensors, chance)
    tensor.buffer = int(chance.integers(0, len(model.buffers) + 1))
    return True


def _order(model: Any, chance: np.random.Generator) -> bool:
    operators = _pick(model.subgraphs, chance).operators
    if len(operators) < 2:  # noqa: PLR2004 - two to change places
        return False
    one, other = (int(chance.integers(0, len(operators))) for _ in range(2))
    operators[one], operators[other] = operators[other], operators[one]
    return True


def _missing(model: Any, chance: np.random.Generator) -> bool:
    operators = _pick(model.subgraphs, chance).operators
    del operators[int(chance.integers(0, len(operators)))]
    return True


def _port(model: Any, chance: np.random.Generator) -> bool:
    signature = _pick(model.signatureDefs, chance)
    port = _pick([*(signature.inputs or []), *(signature.outputs or [])], chance)
    port.tensorIndex = int(chance.integers(0, 60))
    return True


def _port_name(model: Any, chance: np.random.Generator) -> bool:
    signature = _pick(model.signatureDefs, chance)
    ports = [*(signature.inputs or []), *(signature.outputs or [])]
    one, other = _pick(ports, chance), _pick(ports, chance)
    one.name, other.name = other.name, one.name
    return True


def _graph_of(model: Any, chance: np.random.Generator) -> bool:
    _pick(model.signatureDefs, chance).subgraphIndex = int(
        chance.integers(0, len(model.subgraphs) + 1)
    )
    return True


def _variable(model: Any, chance: np.random.Generator) -> bool:
    named = [
        operator.builtinOptions
        for graph in model.subgraphs
        for operator in graph.operators
        if hasattr(operator.builtinOptions, "sharedName")
    ]
    one, other = _pick(named, chance), _pick(named, chance)
    one.sharedName = other.sharedName
    return True


CHANGES: Final[tuple[Callable[[Any, np.random.Generator], bool], ...]] = (
    *(_input, _inputs_fewer, _option, _option, _kind, _code, _version, _shape, _shape, _type),
    *(_constant, _constant, _constant_length, _buffer, _order, _missing, _port, _port_name),
    *(_graph_of, _variable),
)


# --- running --------------------------------------------------------------------------------------


def run(name: str, directory: Path) -> dict[str, Any]:
    """Send a model's mutants through, and count what becomes of them."""
    began_s = time.monotonic()
    manifest = load_manifest(SHIPPED / name)
    expected = results(manifest)
    counts: Counter[str] = Counter()
    bad = []
    for path in sorted(directory.glob(f"{name}.*")):
        outcome, said = become_of(manifest, path.read_bytes(), expected)
        counts[outcome] += 1
        if outcome not in _GOOD:
            bad.append(f"{path.name}: {outcome} {said}")
    return {"counts": dict(counts), "bad": bad, "seconds": time.monotonic() - began_s}


def become_of(manifest: Manifest, data: bytes, expected: dict[str, Any]) -> tuple[str, str]:
    """What becomes of one mutant, and why."""
    artefact = Artefact(data, _info_of(manifest, data))
    mutant = Manifest(manifest.tensors, parts=manifest.parts, artefact=artefact)
    try:
        artefact.check()
        check_file(data, artefact.info)
    except ArtefactRejectedError as error:
        return "read", str(error)
    answer, status = _forked(lambda: _tried(mutant, artefact))
    if not answer:
        return "died on trial", str(status)
    refused = msgspec.json.decode(answer)["refused"]
    if refused:
        return "tried", refused
    said, status = _forked(lambda: _hosted(mutant, artefact, expected))
    known = {_EQUAL: "equal", _DIFFERENT: "different", _TYPED: "tried", _RAISED: "raised"}
    return known.get(status, "the host died"), f"{status} {said.decode()[:300]}"


def _info_of(manifest: Manifest, data: bytes) -> ArtefactInfo:
    """As whoever forges a file would write it: the right hash, length and operators."""
    artefact = manifest.artefact
    if artefact is None:
        raise TypeError("a shipped model has an artefact")
    info = msgspec.structs.replace(
        artefact.info, sha256=hashlib.sha256(data).digest(), file_bytes=max(len(data), 1)
    )
    try:
        check_file(data, info)
    except ArtefactRejectedError:
        operators = _operators(data)
        info = msgspec.structs.replace(info, operators=operators) if operators else info
    return info


def _operators(data: bytes) -> tuple[tuple[int, int], ...]:
    from edge_sdk._flatbuffer import FlatbufferError, Table  # noqa: PLC0415 - a forger's view

    try:
        codes = Table.root(data, b"TFL3").tables(1)
        pairs = {(max(c.scalar(0, "i8"), c.scalar(3, "i32")), c.scalar(2, "i32", 1)) for c in codes}
    except FlatbufferError:
        return ()
    return tuple(sorted(pairs))


def _forked(work: Callable[[], tuple[bytes, int]]) -> tuple[bytes, int]:
    """What the work said and its status, or nothing and the signal that ended it (negative)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        signal.alarm(_SECONDS)
        status = _RAISED
        try:
            said, status = work()
            os.write(writer, said[:4_096])
        except BaseException as error:  # noqa: BLE001 - what it raised is the answer
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4_096])
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        said = answers.read()
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return (said if code >= 0 else b""), code


def _tried(mutant: Manifest, artefact: Artefact) -> tuple[bytes, int]:
    """The trial itself, in this fork."""
    import io  # noqa: PLC0415 - here alone

    told = io.BytesIO(_litert_trust.request(mutant, artefact, _MEMORY, _SECONDS))
    return json.dumps(litert_trial.answer(*litert_trial.read_request(told))).encode(), 0


def _hosted(mutant: Manifest, artefact: Artefact, expected: dict[str, Any]) -> tuple[bytes, int]:
    """Train with it as an app would that has seen it pass."""
    _litert_trust._passed.add(artefact)  # noqa: SLF001 - it has
    try:
        found = results(mutant)
    except Exception as error:  # noqa: BLE001 - which kind is the question
        said = f"{type(error).__name__}: {error}".encode()
        return said, _TYPED if isinstance(error, (ValueError, RuntimeError)) else _RAISED
    adaptive = bool(mutant.tensors.keys() & ADAPTIVE)
    differing = list(_differences(found, expected, adaptive=adaptive))
    return " ".join(differing).encode(), _DIFFERENT if differing else _EQUAL


def results(manifest: Manifest) -> dict[str, Any]:
    """Training and evaluation on other data than the probe's, with batches that are not full."""
    info = manifest.artefact.info if manifest.artefact else None
    if info is None:
        raise TypeError("a shipped model has an artefact")
    drawn = [probe_batch(info, 1_000 + step) for step in range(4)]
    x = np.concatenate([x for x, _y in drawn])[:-3]
    y = np.concatenate([y for _x, y in drawn])[:-3]
    found: dict[str, Any] = {}
    for number, (mu, clip) in enumerate(((0.0, 0.0), (0.2, 0.0), (0.0, 0.3))):
        trainer = LiteRTTrainer(manifest, (x, y), holdout=(x, y), gradient_norm_max=clip)
        plan = Plan(local_epochs=2, batch=10, learning_rate=0.05, seed=3, proximal_mu=mu)
        trained = trainer.train(Model(0, manifest.tensors), plan, stop=lambda: False)
        measured = trainer.evaluate(Model(0, trained.tensors), plan, stop=lambda: False)
        found[f"loss {number}"] = np.array([trained.metrics["train_loss"], measured.loss])
        found[f"accuracy {number}"] = np.array(measured.metrics["accuracy"])
        for name, array in trained.tensors.items():
            found[f"{name} {number}"] = array - manifest.tensors[name]
    return found


def _differences(
    found: dict[str, Any], expected: dict[str, Any], *, adaptive: bool
) -> Iterator[str]:
    for name, array in expected.items():
        apart = float(np.linalg.norm(found[name] - array))
        # An accuracy jumps by an example where two scores are as good as equal; and Adam makes
        # hundredths, in all these steps, of thousandths that a trial cannot tell from rounding.
        share = 0.04 if adaptive else 5e-3
        bound = 0.05 if name.startswith("accuracy") else share * float(np.linalg.norm(array)) + 1e-5
        if not apart <= bound:
            yield f"{name}: {apart:.3g} apart, of {float(np.linalg.norm(array)):.3g}"


if __name__ == "__main__":
    sys.exit(main())
