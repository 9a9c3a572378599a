"""Per-tensor int8: weights alone, or activations too.

A real number r stands as q with r = (q - zero) * scale (Jacob et al. 2018, eq. 1). Weights have
zero 0 and scale max|w| / 127; activations are asymmetric over what calibration saw of them.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Builtin
from numpy.typing import NDArray

from litert_author.errors import AuthorError
from litert_author.graph import Array
from litert_author.program import Program, add_constant, operator_name, shape_of, write_into
from litert_author.runtime import SERVING, calls
from litert_author.tflite_file import FileWriter, SubgraphWriter, options

# A smaller constant saves less than its scale and operator cost.
_WEIGHT_ELEMENTS_MIN: Final = 64
_STEPS: Final = 127
_DEQUANTIZE_INT8: Final = 2

# Operators that full integer is made for, with the version that knows int8.
_WEIGHTED: Final = {Builtin.FULLY_CONNECTED: 4, Builtin.CONV_2D: 3}
# These hand on their input's scale.
_PASSING: Final = {Builtin.MAX_POOL_2D: 2, Builtin.AVERAGE_POOL_2D: 2, Builtin.RESHAPE: 1}


def write(program: Program) -> bytes:
    """A file of one signature: x -> output."""
    file = FileWriter()
    sub = SubgraphWriter(file, SERVING)
    given = program.tensors[program.input]
    dtype = "int32" if given.type == schema.TensorType.INT32 else "float32"
    x = sub.input("x", shape_of(given), dtype)
    sub.output("output", write_into(program, sub, x))
    sub.finish()
    return file.pack()


def weights(program: Program) -> None:
    """Weights in int8, widened to float32 when the file is loaded."""
    widened: dict[int, int] = {}
    first = []
    for operator in program.operators:
        for place, index in enumerate(operator.inputs):
            values = program.data(int(index)) if index >= 0 else None
            if values is None or values.dtype != np.float32 or values.size < _WEIGHT_ELEMENTS_MIN:
                continue
            if int(index) not in widened:
                wide = program.add_tensor(int(index))
                narrow = _weight(program, values)
                how = options("Dequantize")
                first.append(
                    program.add_operator(
                        Builtin.DEQUANTIZE, [narrow], [wide], how, _DEQUANTIZE_INT8
                    )
                )
                widened[int(index)] = wide
            operator.inputs[place] = widened[int(index)]
    program.operators = first + program.operators


def _weight(program: Program, values: Array) -> int:
    scale = max(float(np.abs(values).max()), 1e-12) / _STEPS
    index = add_constant(program, "weight", np.rint(values / scale).astype(np.int8))
    program.tensors[index].quantization = _quantization(scale, 0)
    return index


def _quantization(scale: float, zero: int) -> Any:
    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint = [scale], [zero]
    return made


def everything(program: Program, calibration: NDArray[np.float32]) -> None:
    """Weights and activations in int8, sums in int32.

    Raises:
        AuthorError: an operator that it is not made for, or examples of another shape.
    """
    for operator in program.operators:
        code = program.code(operator)
        if code not in _WEIGHTED and code not in _PASSING:
            raise AuthorError(
                f"export: {operator_name(code)} is not for full integer: leave calibration out, "
                "and weights alone are int8"
            )
    ranges = _ranges(program, calibration)
    _quantize_activation(program, program.input, *ranges[program.input])
    for operator in program.operators:
        code = program.code(operator)
        x, made = int(operator.inputs[0]), int(operator.outputs[0])
        if code in _PASSING:
            program.tensors[made].type = schema.TensorType.INT8
            program.tensors[made].quantization = program.tensors[x].quantization
            version = _PASSING[code]
        else:
            _quantize_activation(program, made, *ranges[made])
            version = _WEIGHTED[code]
            kernel, bias = (program.data(int(i)) for i in operator.inputs[1:3])
            if kernel is None or bias is None:
                raise AuthorError("export: full integer takes constant weights")
            weight = _weight(program, kernel)
            scale = _scale(program, x) * _scale(program, weight)
            whole = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
            sums = add_constant(program, "bias", whole)
            program.tensors[sums].quantization = _quantization(scale, 0)
            operator.inputs = [x, weight, sums]
        kind = schema.OperatorCodeT()
        kind.builtinCode, kind.version = code, version
        program.model.operatorCodes.append(kind)
        operator.opcodeIndex = len(program.model.operatorCodes) - 1


def _scale(program: Program, index: int) -> float:
    return float(program.tensors[index].quantization.scale[0])


def _quantize_activation(program: Program, index: int, low: float, high: float) -> None:
    """Int8 over [low, high], widened to hold 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-12) / (2 * _STEPS + 1)
    zero = int(np.clip(round(-128 - low / scale), -128, 127))
    program.tensors[index].type = schema.TensorType.INT8
    program.tensors[index].quantization = _quantization(scale, zero)


def _ranges(program: Program, calibration: NDArray[np.float32]) -> dict[int, tuple[float, float]]:
    """The least and the largest of every activation over the examples."""
    shape = shape_of(program.tensors[program.input])
    if calibration.shape[1:] != shape[1:] or not len(calibration):
        raise AuthorError(
            f"export: calibration examples are {list(calibration.shape[1:])}, and the model takes "
            f"{list(shape[1:])}"
        )
    file = FileWriter()
    sub = SubgraphWriter(file, SERVING)
    x = sub.input("x", shape, "float32")
    write_into(program, sub, x)
    for operator in sub.graph.operators:
        sub.output(f"a{operator.outputs[0]}", operator.outputs[0])
    places = {f"a{o.outputs[0]}": int(mine.outputs[0]) for o, mine in _pairs(sub, program)}
    sub.finish()
    batch = shape[0]
    rows = np.resize(calibration, (-(-len(calibration) // batch) * batch, *shape[1:]))
    rows = rows.astype(np.float32)
    found = {program.input: (float(rows.min()), float(rows.max()))}
    given = [(SERVING, {"x": rows[i : i + batch]}) for i in range(0, len(rows), batch)]
    for answer in calls(file.pack(), given):
        for name, values in answer.items():
            low, high = found.get(places[name], (0.0, 0.0))
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            found[places[name]] = (low, high)
    return found


def _pairs(sub: SubgraphWriter, program: Program) -> Iterator[tuple[Any, Any]]:
    return zip(sub.graph.operators, program.operators, strict=True)
