"""From trained parameters to a file that only answers: float32, or per-tensor int8.

It starts from the trainable file alone, so it exports whatever `infer` computes. Every export is
run beside the trainable file before it is handed out.
"""

from typing import Any, Final, Literal

import numpy as np
from ai_edge_litert.schema_py_generated import ActivationFunctionType as Activation
from ai_edge_litert.schema_py_generated import BuiltinOperator as Builtin
from numpy.typing import NDArray

from litert_author import quantize
from litert_author.errors import AuthorError
from litert_author.program import Program, add_constant, read_signature, rebatch, shape_of
from litert_author.quantize import write
from litert_author.runtime import SERVING, calls
from litert_author.tflite_file import options
from wire import Artefact, Tensors
from wire.artefact import probe_batch

# How far an export may be from the trainable file: the largest difference, of the largest output.
TOLERANCES: Final = {"float32": 1e-4, "int8": 0.1}


_TINY: Final = 1e-12


class ExportError(AuthorError):
    """An export that is not what the trainable file computes, or cannot be made."""


def export(
    artefact: Artefact,
    tensors: Tensors,
    dtype: Literal["float32", "int8"] = "float32",
    *,
    calibration: NDArray[np.float32] | None = None,
    batch: int = 1,
    tolerance: float | None = None,
) -> bytes:
    """A `.tflite` file with one signature, `serving_default`: x -> output, both as in `infer`.

    `int8` rounds weights to 255 steps per tensor (per channel, tflite-runtime 2.14 is wrong).
    Without `calibration` that is all: weights are widened when the file is loaded, and what is
    computed is float32. With it activations are int8 too: for dense, conv, pooling, flatten, relu.

    Args:
        artefact: the trainable file.
        tensors: trained parameters, by name.
        dtype: what weights are kept in.
        calibration: examples [N, ...] that show how large activations are.
        batch: examples of one call.
        tolerance: largest difference from the trainable file, of its largest output; None for 1e-4
            in float32 and 0.1 in int8.

    Raises:
        ExportError: the file is further than `tolerance` from the trainable one, or full integer is
            asked of operators that it is not made for.
        AuthorError: a parameter is missing or of another shape.
    """
    if dtype not in TOLERANCES:
        raise AuthorError(f"export: dtype is {' or '.join(TOLERANCES)}, not {dtype!r}")
    artefact.check()
    program = _frozen(artefact, tensors)
    rebatch(program, artefact.info.batch, batch)
    _fuse(program)
    if dtype == "int8" and calibration is None:
        quantize.weights(program)
    elif dtype == "int8" and calibration is not None:
        quantize.everything(program, calibration)
    data = write(program)
    limit = TOLERANCES[dtype] if tolerance is None else tolerance
    error = _difference(artefact, tensors, data, batch, calibration)
    if not error <= limit:
        raise ExportError(
            f"export: the {dtype} file is off by {error:.3g} of the largest output, more than "
            f"{limit:g}: calibrate with more typical examples, or take float32"
        )
    return data


def _frozen(artefact: Artefact, tensors: Tensors) -> Program:
    """`infer` with constants for variables."""
    expected = {spec.name: spec.shape for spec in artefact.info.parameters}
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != shape:
            has = list(tensors[name].shape) if name in tensors else "missing"
            raise AuthorError(f"export: {name} is {list(shape)}, and here it is {has}")
        if not np.isfinite(tensors[name]).all():
            raise AuthorError(f"export: {name} has values that are not finite")
    program = read_signature(artefact.data, "infer")
    handles: dict[int, str] = {}
    same: dict[int, int] = {}
    kept = []
    for operator in program.operators:
        operator.inputs = [same.get(int(i), int(i)) for i in operator.inputs]
        code = program.code(operator)
        if code == Builtin.VAR_HANDLE:
            handles[int(operator.outputs[0])] = operator.builtinOptions.sharedName.decode()
        elif code == Builtin.READ_VARIABLE:
            name = handles[int(operator.inputs[0])]
            values = np.asarray(tensors[name], np.float32)
            same[int(operator.outputs[0])] = add_constant(program, name, values)
        else:
            kept.append(operator)
    program.operators = kept
    return program


def _fuse(program: Program) -> None:
    """Products with constants as FULLY_CONNECTED, with bias and activation in it.

    It is what runtimes are fastest at, and what full integer is made for.
    """
    uses: dict[int, int] = {program.output: 1}
    for operator in program.operators:
        for index in operator.inputs:
            uses[int(index)] = uses.get(int(index), 0) + 1
    made: dict[int, Any] = {}
    kept = []
    for operator in program.operators:
        code, how = program.code(operator), operator.builtinOptions
        source = made.get(int(operator.inputs[0])) if len(operator.inputs) else None
        if source is not None and uses[int(operator.inputs[0])] > 1:
            source = None
        if (
            code == Builtin.BATCH_MATMUL
            and not how.adjX
            and (full := _connected(program, operator))
        ):
            made[int(operator.outputs[0])] = full
            kept.append(full)
        elif code == Builtin.CONV_2D:
            made[int(operator.outputs[0])] = operator
            kept.append(operator)
        elif source is not None and code == Builtin.ADD and _add_bias(program, source, operator):
            made[int(operator.outputs[0])] = source
        elif source is not None and code == Builtin.RELU:
            source.builtinOptions.fusedActivationFunction = Activation.RELU
            source.outputs = list(operator.outputs)
        else:
            kept.append(operator)
    program.operators = kept


def _connected(program: Program, operator: Any) -> Any:
    """A product with a constant matrix as FULLY_CONNECTED, None for another product."""
    x, kernel = (int(i) for i in operator.inputs)
    values = program.data(kernel)
    if values is None or values.ndim != 2 or len(shape_of(program.tensors[x])) != 2:  # noqa: PLR2004
        return None
    rows = values if operator.builtinOptions.adjY else values.T
    how = options("FullyConnected")
    weights = add_constant(program, "kernel", np.ascontiguousarray(rows))
    bias = add_constant(program, "bias", np.zeros(rows.shape[0], np.float32))
    outputs = list(operator.outputs)
    return program.add_operator(Builtin.FULLY_CONNECTED, [x, weights, bias], outputs, how, 1)


def _add_bias(program: Program, source: Any, operator: Any) -> bool:
    """Put a constant that is added to a product into it, if it is one number a channel."""
    values = program.data(int(operator.inputs[1]))
    bias = program.data(int(source.inputs[2]))
    done = source.builtinOptions.fusedActivationFunction != Activation.NONE
    if values is None or bias is None or done or values.shape != bias.shape:
        return False
    source.inputs = [*source.inputs[:2], add_constant(program, "bias", bias + values)]
    source.outputs = list(operator.outputs)
    return True


def _difference(
    artefact: Artefact,
    tensors: Tensors,
    data: bytes,
    batch: int,
    examples: NDArray[np.float32] | None,
) -> float:
    """The largest difference of outputs, of the largest output of the trainable file."""
    info = artefact.info
    x = probe_batch(info, 0)[0]
    if examples is not None:
        x = np.resize(examples, (info.batch, *info.x_shape)).astype(np.float32)
    parameters = {spec.name: tensors[spec.name] for spec in info.parameters}
    wanted = calls(artefact.data, [("set_parameters", parameters), ("infer", {"x": x})])
    expected = wanted[1]["output"]
    filled = np.resize(x, (-(-len(x) // batch) * batch, *x.shape[1:]))
    given = [(SERVING, {"x": filled[i : i + batch]}) for i in range(0, len(filled), batch)]
    found = np.concatenate([each["output"] for each in calls(data, given)])[: len(x)]
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), _TINY))
