"""A model as a list of layers, and the trainable file that it becomes."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from litert_author import losses, ops, probe, reference
from litert_author.errors import AuthorError
from litert_author.gradients import gradients
from litert_author.graph import Graph, Value, needed
from litert_author.layers import Layer, whole
from litert_author.lowering import SignatureWriter
from litert_author.optimizers import Assigned, Optimizer, Trained, sgd
from litert_author.runtime import calls
from litert_author.scope import Parameters, Scope
from litert_author.tflite_file import FileWriter
from wire import Artefact, ArtefactInfo, Manifest, limits
from wire.artefact import Loss, Probe, probe_batch

_ANCHOR: Final = "anchor/"
# Keeps 0 / 0 out where neither gradient nor bound is.
_TINY: Final = 1e-30
# Of the largest output: integers of a quantized file may round the other way in a batch.
_BACKBONE_ERROR_MAX: Final = 2e-2


@dataclass(frozen=True)
class Sequential:
    """A small model, trainable on devices through LiteRT.

    Args:
        input_shape: of one example, without the batch.
        layers: one after the other.
        loss: `softmax` (labels are class numbers, per example or per position), `sigmoid` (labels
            in [0, 1], per output) or `squared` (labels are real numbers, per output).
        optimizer: `sgd()`, `momentum()` or `adam()`.
        batch: examples of one step; trainers pad the last batch and mask what they added.
        seed: first values follow from it.
        initial: first values by parameter name in place of drawn ones, frozen parameters too: a
            model that is there already.

    Raises:
        AuthorError: when the model is written; the text says which layer and why.
    """

    input_shape: tuple[int, ...]
    layers: Sequence[Layer]
    loss: Loss = "softmax"
    optimizer: Optimizer = field(default_factory=sgd)
    batch: int = 16
    seed: int = 0
    initial: Mapping[str, ArrayLike] = field(default_factory=dict)

    def artefact(self) -> Artefact:
        """The file and what is said about it; equal models give equal bytes.

        Raises:
            AuthorError: a layer, shape or value that does not do.
        """
        return self.written.artefact

    def manifest(self) -> Manifest:
        """What a task hands over: first values, parts, the file, and what a step costs.

        Raises:
            AuthorError: as `artefact`.
        """
        written = self.written
        shared = [name for name, part in written.parts.items() if part == "shared"]
        last = shared[-1].partition("/")[0]
        head = tuple(name for name in shared if name.startswith(f"{last}/"))
        return Manifest(
            {name: array.copy() for name, array in written.first.items()},
            parts={spec.name: spec.part for spec in written.artefact.info.parameters},
            artefact=written.artefact,
            flops_per_example=written.step_flops / self.batch,
            head=head if len(head) < len(shared) else (),
        )

    @functools.cached_property
    def written(self) -> "Written":
        """The model as a graph and a file."""
        return _write(self)

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Written:
    """A model as a graph, and as a file.

    Args:
        artefact: the file and what is said about it.
        first: first values of the trained parameters.
        parts: part of every parameter, frozen ones included.
        x: the input.
        output: what `infer` gives.
        values: the parameters in the graph.
        step_flops: floating-point operations of one training step, all examples of a batch.
        train: the step in the graph.
        proximal: the same with FedProx's pull and a clipped gradient.
    """

    artefact: Artefact
    first: Mapping[str, NDArray[np.float32]]
    parts: Mapping[str, str]
    x: Value
    output: Value
    values: Mapping[str, Value]
    step_flops: float
    train: probe.Step
    proximal: probe.Step


@dataclass(frozen=True)
class _Steps:
    """The inputs of training, and what it computes."""

    y: Value
    w: Value
    lr: Value
    loss: Value
    trained: list[Trained]
    assigned: list[Assigned]
    cost: losses.Cost


def _write(model: Sequential) -> Written:
    _check(model)
    graph = Graph(reference.compute)
    parameters = Parameters(graph, model.seed, model.initial)
    first = model.layers[0]
    x = graph.source("input", "x", (model.batch, *model.input_shape), first.takes)
    output = _forward(model, parameters, x)
    unknown = sorted(set(model.initial) - set(parameters.parts))
    if unknown:
        raise AuthorError(
            f"initial names parameters that the model does not have: {', '.join(unknown)}; it has "
            f"{', '.join(parameters.parts)}"
        )
    steps = _steps(model, graph, parameters, output)
    file = FileWriter()
    inputs = [("x", x), ("y", steps.y), ("w", steps.w)]
    SignatureWriter(file, "train").write(
        [*inputs, ("lr", steps.lr)], [("loss", steps.loss)], steps.assigned
    )
    proximal = _proximal(model, file, parameters, steps, inputs)
    SignatureWriter(file, "infer").write([("x", x)], [("output", output)], [])
    right = steps.cost.right * steps.w
    sums = [
        ("loss_sum", ops.total(steps.cost.each * steps.w)),
        ("right_sum", ops.total(right if model.loss != "squared" else steps.w * 0.0)),
    ]
    SignatureWriter(file, "evaluate").write(inputs, sums, [])
    _transfer(file, parameters, steps.assigned)
    data = file.pack()
    info = ArtefactInfo(
        sha256=hashlib.sha256(data).digest(),
        file_bytes=len(data),
        batch=model.batch,
        x_shape=model.input_shape,
        x_dtype="int32" if first.takes == "int32" else "float32",
        x_values=first.values,
        y_shape=steps.y.shape[1:],
        y_dtype="int32" if steps.y.dtype == "int32" else "float32",
        classes=output.shape[-1] if model.loss == "softmax" else 0,
        loss=model.loss,
        parameters=parameters.specs(),
        operators=file.operators,
        probe=Probe(model.seed, 1.0, (0.0,)),
    )
    train = probe.Step(steps.loss, steps.assigned, [by for _, by in steps.trained])
    near = probe.Step(steps.loss, proximal, [])
    info = probe.probe(info, parameters.first, train, near, model.optimizer.probe_rate)
    if any(value.op == "backbone" for value in graph.values):
        _check_backbone(data, info, parameters, output)
    flops = _flops([steps.loss, *(value for _, value in steps.assigned)])
    return Written(
        artefact=Artefact(data, info),
        first=parameters.first,
        parts=parameters.parts,
        x=x,
        output=output,
        values=parameters.values,
        step_flops=flops,
        train=train,
        proximal=near,
    )


def _check_backbone(data: bytes, info: ArtefactInfo, parameters: Parameters, output: Value) -> None:
    """Raise unless a batch through the new file gives what single examples give.

    Raises:
        AuthorError: an operator of the backbone mixes examples, or has a shape in a constant.
    """
    x, _ = probe_batch(info, 0)
    first = parameters.first
    (expected,) = reference.evaluate([output], {**first, "x": x})
    found = calls(data, [("set_parameters", first), ("infer", {"x": x})])[1]["output"]
    error = float(np.abs(found - expected).max())
    if not error <= _BACKBONE_ERROR_MAX * float(np.abs(expected).max()):
        raise AuthorError(
            f"backbone: a batch of {len(x)} gives another output than single examples (off by "
            f"{error:.3g}): an operator mixes examples, and the file cannot be taken"
        )


def _check(model: Sequential) -> None:
    if not model.layers:
        raise AuthorError("a model needs at least one layer")
    if not model.input_shape or not all(whole(size) for size in model.input_shape):
        raise AuthorError(
            f"input_shape is one example's, whole numbers from 1, not {model.input_shape!r}"
        )
    if not whole(model.batch) or model.batch > limits.BATCH_MAX:
        raise AuthorError(f"batch is 1 to {limits.BATCH_MAX}, not {model.batch}")
    if model.seed < 0:
        raise AuthorError(f"seed is 0 or more, not {model.seed}")
    losses.rule(model.loss)


def _forward(model: Sequential, parameters: Parameters, x: Value) -> Value:
    top = Scope(parameters, "", "shared")
    y = x
    for number, layer in enumerate(model.layers):
        if number and layer.takes == "int32":
            raise AuthorError(f"{layer.kind} takes ids: it has to be the first layer")
        y = layer.build(top.child(layer.kind, layer.name, layer.part), y)
    if "shared" not in {parameters.parts[name] for name in parameters.values}:
        raise AuthorError("no parameter is shared, so there is nothing to learn together")
    if model.loss == "softmax" and (y.rank not in {2, 3} or y.shape[-1] < 2):  # noqa: PLR2004
        raise AuthorError(
            f"softmax takes scores [classes] or [positions, classes] of two classes or more, and "
            f"the last layer makes {list(y.shape[1:])}"
        )
    return y


def _steps(model: Sequential, graph: Graph, parameters: Parameters, output: Value) -> _Steps:
    y = losses.label(graph, model.loss, output)
    w = graph.source("input", "w", (model.batch,))
    lr = graph.source("input", "lr", ())
    cost = losses.rule(model.loss).cost(output, y)
    count = ops.maximum(ops.total(w), 1.0)
    weights = w / count
    loss = ops.total(cost.each * weights)
    trained = _gradients(parameters, output, cost.by_output(weights))
    assigned = model.optimizer.step(graph, trained, lr)
    return _Steps(y, w, lr, loss, trained, assigned, cost)


def _gradients(parameters: Parameters, output: Value, seed: Value) -> list[Trained]:
    found = gradients([(output, seed)], list(parameters.values.values()))
    idle = [name for name, by in zip(parameters.values, found, strict=True) if by is None]
    if idle:
        raise AuthorError(f"the loss does not depend on {', '.join(idle)}")
    pairs = zip(parameters.values.values(), found, strict=True)
    return [(parameter, by) for parameter, by in pairs if by is not None]


def _proximal(
    model: Sequential,
    file: FileWriter,
    parameters: Parameters,
    steps: _Steps,
    inputs: Sequence[tuple[str, Value]],
) -> list[Assigned]:
    """The step with FedProx's pull to the anchor (Li et al. 2020, eq. 2) and a clipped gradient."""
    graph = parameters.graph
    mu, clip = graph.source("input", "mu", ()), graph.source("input", "clip", ())
    pulled = []
    for parameter, by in steps.trained:
        anchor = graph.source("parameter", f"{_ANCHOR}{parameter.name}", parameter.shape)
        pulled.append((parameter, by + (parameter - anchor) * mu))
    squares = [ops.total(ops.square(by)) for _, by in pulled]
    norm = ops.sqrt(functools.reduce(lambda a, b: a + b, squares))
    least = ops.maximum(ops.maximum(norm, clip), _TINY)
    scale = ops.where(ops.greater(clip, 0.0), clip / least, graph.constant(1.0))
    clipped = [(parameter, by * scale) for parameter, by in pulled]
    assigned = model.optimizer.step(graph, clipped, steps.lr)
    SignatureWriter(file, "train_proximal").write(
        [*inputs, ("lr", steps.lr), ("mu", mu), ("clip", clip)], [("loss", steps.loss)], assigned
    )
    return assigned


def _transfer(file: FileWriter, parameters: Parameters, assigned: Sequence[Assigned]) -> None:
    """`get_parameters` and `set_parameters`; the latter sets anchors, and slots to zero."""
    graph, values = parameters.graph, parameters.values
    SignatureWriter(file, "get_parameters").write([], list(values.items()), [])
    given = {name: graph.source("input", name, value.shape) for name, value in values.items()}
    changes = [(values[name], value) for name, value in given.items()]
    for name, value in given.items():
        changes.append((graph.source("parameter", f"{_ANCHOR}{name}", value.shape), value))
    ok = ops.total(next(iter(given.values()))) * 0.0
    for variable, _ in assigned:
        if variable.name not in values:
            base = given.get(variable.name.partition("/")[2], ok)
            changes.append((variable, base * 0.0))
    SignatureWriter(file, "set_parameters").write(list(given.items()), [("ok", ok)], changes)


def _flops(results: Sequence[Value]) -> float:
    """Two for each multiplication in a product or convolution: all else is small beside them."""
    found = 0.0
    for value in needed(results):
        if value.op == "matmul":
            inner = value.inputs[0].shape[-2 if value.attributes["ta"] else -1]
            found += 2.0 * value.size * inner
        elif value.op == "conv":
            found += 2.0 * value.size * value.inputs[1].size / value.inputs[1].shape[0]
        elif value.op == "conv_transpose":
            found += 2.0 * value.inputs[0].size * value.inputs[1].size / value.inputs[1].shape[3]
    return found
