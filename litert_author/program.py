"""Reading a `.tflite` file that somebody else has made, for a backbone or an export.

A file is taken only if it is one plain function of one input: no state, no branches, no operators
that the plain runtimes lack. What is read is the schema's own objects, changed in place.
"""

import copy
import difflib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Builtin

from litert_author.errors import AuthorError
from litert_author.graph import Array
from litert_author.tflite_file import FILE_IDENTIFIER, SubgraphWriter, options

DTYPES: Final[dict[int, np.dtype[Any]]] = {
    schema.TensorType.FLOAT32: np.dtype(np.float32),
    schema.TensorType.INT32: np.dtype(np.int32),
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.UINT8: np.dtype(np.uint8),
    schema.TensorType.INT64: np.dtype(np.int64),
    schema.TensorType.BOOL: np.dtype(np.bool_),
    schema.TensorType.FLOAT16: np.dtype(np.float16),
}
_NAMES: Final[dict[int, str]] = {
    code: name for name, code in vars(Builtin).items() if isinstance(code, int)
}
INTEGERS: Final = (schema.TensorType.INT8, schema.TensorType.UINT8)
# Versions that know int8.
_QUANTIZE: Final = 1
_DEQUANTIZE: Final = 2
# Operators that hold state or call other subgraphs.
_REFUSED: Final = frozenset(
    {
        "ASSIGN_VARIABLE",
        "CALL",
        "CALL_ONCE",
        "CUSTOM",
        "DELEGATE",
        "DENSIFY",
        "HASHTABLE",
        "IF",
        "READ_VARIABLE",
        "STABLEHLO_COMPOSITE",
        "VAR_HANDLE",
        "WHILE",
    }
)


def operator_name(code: int) -> str:
    """A built-in operator's name in the schema."""
    return _NAMES.get(code, f"operator {code}")


@dataclass
class Program:
    """One subgraph of a file: its tensors, and the operators that its output needs, in order."""

    model: Any
    tensors: list[Any]
    operators: list[Any]
    input: int
    output: int

    def code(self, operator: Any) -> int:
        """The built-in code of an operator."""
        kind = self.model.operatorCodes[operator.opcodeIndex]
        return int(max(kind.builtinCode, kind.deprecatedBuiltinCode))

    def version(self, operator: Any) -> int:
        """The version of an operator."""
        return int(self.model.operatorCodes[operator.opcodeIndex].version)

    def data(self, index: int) -> Array | None:
        """A constant tensor's values, None for one that is computed."""
        tensor = self.tensors[index]
        raw = self.model.buffers[tensor.buffer].data
        if raw is None or len(raw) == 0:
            return None
        kind = DTYPES.get(tensor.type)
        if kind is None:
            raise AuthorError(f"{name_of(tensor)}: constants of its type are not known")
        shape = shape_of(tensor)
        if len(raw) != math.prod(shape) * kind.itemsize or tensor.sparsity is not None:
            raise AuthorError(
                f"{name_of(tensor)}: a constant of {list(shape)} in {len(raw)} bytes is sparse or "
                "damaged: convert without sparsity"
            )
        return np.frombuffer(np.asarray(raw, np.uint8).tobytes(), kind).reshape(shape)

    def add_operator(
        self, code: int, inputs: list[int], outputs: list[int], options: Any, version: int
    ) -> Any:
        """A new operator, not yet among `operators`."""
        kind = schema.OperatorCodeT()
        kind.builtinCode, kind.version = code, version
        self.model.operatorCodes.append(kind)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs, operator.builtinOptions = inputs, outputs, options
        return operator

    def add_tensor(self, like: int) -> int:
        """A new tensor of the shape and type of another; its index."""
        tensor = copy.copy(self.tensors[like])
        tensor.buffer = 0
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def used(self) -> Iterator[int]:
        """Tensors that the operators read or write."""
        for operator in self.operators:
            yield from (i for i in (*operator.inputs, *operator.outputs) if i >= 0)

    def computed(self) -> set[int]:
        """Tensors that depend on the input, itself included."""
        found = {self.input}
        for operator in self.operators:
            if found & set(operator.inputs):
                found |= set(operator.outputs)
        return found

    def prune(self) -> None:
        """Drop operators that the output does not need."""
        wanted, kept = {self.output}, []
        for operator in reversed(self.operators):
            if wanted & set(operator.outputs):
                wanted |= {i for i in operator.inputs if i >= 0}
                kept.append(operator)
        self.operators = kept[::-1]


def name_of(tensor: Any) -> str:
    """A tensor's name as text."""
    name = tensor.name
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


def shape_of(tensor: Any) -> tuple[int, ...]:
    """A tensor's shape."""
    return tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))


def scale_of(tensor: Any) -> Array:
    """What a tensor's integers are multiplied with: one number, one a channel, or none."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        return np.zeros(0)
    return np.asarray(quantization.scale, np.float64)


def parse(data: bytes) -> Any:
    """The schema's objects of a file.

    Raises:
        AuthorError: the bytes are no `.tflite` file.
    """
    if data[4:8] != FILE_IDENTIFIER:
        raise AuthorError("this is no .tflite file: its fifth to eighth bytes are not TFL3")
    try:
        return schema.ModelT.InitFromPackedBuf(data)
    except (struct.error, ValueError, TypeError, IndexError, KeyError, MemoryError) as error:
        raise AuthorError(f"this .tflite file is damaged: {error}") from None


def read(data: bytes, output: str | int | None = None) -> Program:
    """A file with one subgraph, up to one of its tensors.

    Args:
        data: the file.
        output: a tensor's name or index; the file's own output if None.

    Raises:
        AuthorError: it is no such file, or has what cannot be taken.
    """
    model = parse(data)
    graph = model.subgraphs[0]
    program = _program(model, graph, _chosen(graph, output))
    for operator in program.operators:
        name = operator_name(program.code(operator))
        if name in _REFUSED:
            custom = model.operatorCodes[operator.opcodeIndex].customCode
            which = f" ({custom.decode()})" if custom else ""
            raise AuthorError(
                f"the file has {name}{which}: state, branches, sparse constants and operators that "
                "are not built in cannot be taken"
            )
    for index in sorted({*program.used(), program.input}):
        tensor = program.tensors[index]
        signature = tensor.shapeSignature
        if signature is not None and any(int(size) < 0 for size in signature[1:]):
            raise AuthorError(
                f"{name_of(tensor)} has the shape {[int(s) for s in signature]}: only the batch "
                "may be open; convert with fixed shapes"
            )
    return program


def read_signature(data: bytes, key: str) -> Program:
    """The subgraph of one signature, state included.

    Raises:
        AuthorError: no such file or signature.
    """
    model = parse(data)
    for signature in model.signatureDefs or ():
        if signature.signatureKey.decode() == key:
            graph = model.subgraphs[signature.subgraphIndex]
            return _program(model, graph, _chosen(graph, None))
    raise AuthorError(f"the file has no signature {key!r}")


def _program(model: Any, graph: Any, output: int) -> Program:
    inputs = [int(i) for i in graph.inputs]
    if len(inputs) != 1:
        raise AuthorError(f"the file takes {len(inputs)} inputs: a backbone takes one")
    for operator in graph.operators:
        operator.inputs = [int(i) for i in operator.inputs]
        operator.outputs = [int(i) for i in operator.outputs]
    program = Program(model, list(graph.tensors), list(graph.operators), inputs[0], output)
    program.prune()
    return program


def _chosen(graph: Any, output: str | int | None) -> int:
    outputs = [int(i) for i in graph.outputs]
    if output is None:
        if len(outputs) != 1:
            told = ", ".join(repr(name_of(graph.tensors[index])) for index in outputs[:8])
            raise AuthorError(
                f"the file gives {len(outputs)} outputs: say which with output=, of {told}"
            )
        return outputs[0]
    made = [int(i) for operator in graph.operators for i in operator.outputs]
    if isinstance(output, int):
        if output not in made:
            raise AuthorError(
                f"no operator makes tensor {output}: it is one of {made[0]}..{made[-1]}"
            )
        return output
    names = {name_of(graph.tensors[i]): i for i in made}
    if output not in names:
        near = difflib.get_close_matches(output, names, 3, 0.0)
        raise AuthorError(f"no operator makes a tensor {output!r}; the nearest: {', '.join(near)}")
    return names[output]


def rebatch(program: Program, old: int, new: int) -> None:
    """Give a program another batch: first dimensions of what is computed, old * k -> new * k.

    Constants that speak of shapes go along. Whether that was right shows when it runs: callers
    compare.

    Raises:
        AuthorError: a tensor's first dimension is no multiple of the batch.
    """

    def scaled(size: int, what: str) -> int:
        if size % old:
            raise AuthorError(f"{what}: its first dimension, {size}, has no batch of {old} in it")
        return size // old * new

    computed = program.computed()
    for index in sorted(computed):
        tensor = program.tensors[index]
        tensor.shapeSignature = None
        if shape := shape_of(tensor):
            tensor.shape = [scaled(shape[0], name_of(tensor)), *shape[1:]]
    for operator in program.operators:
        place = _SHAPE_INPUT.get(program.code(operator))
        if place is not None and computed & set(operator.outputs):
            _reshape(program, operator, place, scaled)


def _reshape(
    program: Program, operator: Any, place: int, scaled: Callable[[int, str], int]
) -> None:
    """Give an operator that has its result's shape in a constant another batch."""
    code = program.code(operator)
    if code == Builtin.RESHAPE and len(operator.inputs) == 1:  # the older form
        shape = np.asarray(operator.builtinOptions.newShape, np.int32)
        operator.inputs.append(add_constant(program, "shape", shape))
    index = operator.inputs[place]
    found = program.data(index)
    if found is None or not found.size:
        raise AuthorError(f"{operator_name(code)} computes its shape: only fixed ones can be taken")
    values = found.reshape(-1).copy()
    if values[0] > 0:
        values[0] = scaled(int(values[0]), operator_name(code))
        name = f"{name_of(program.tensors[index])}/batch"
        operator.inputs[place] = add_constant(program, name, values)
    if code == Builtin.RESHAPE and operator.builtinOptions is not None:
        operator.builtinOptions.newShape = values.tolist()


# Where an operator has the shape of what it makes.
_SHAPE_INPUT: Final = {
    Builtin.RESHAPE: 1,
    Builtin.SLICE: 2,
    Builtin.TRANSPOSE_CONV: 0,
    Builtin.BROADCAST_TO: 1,
    Builtin.STRIDED_SLICE: 2,
    Builtin.FILL: 0,
}


def add_constant(program: Program, name: str, values: Array) -> int:
    """A new constant of a program; its index."""
    kinds = {dtype: code for code, dtype in DTYPES.items()}
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.name = list(values.shape), kinds[values.dtype], name
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    tensor.buffer = len(program.model.buffers)
    program.model.buffers.append(buffer)
    program.tensors.append(tensor)
    return len(program.tensors) - 1


def write_into(program: Program, sub: SubgraphWriter, x: int) -> int:
    """Write a program after x, in real numbers at both ends; the tensor of its output."""
    known: dict[int, int] = {-1: -1}
    given = program.tensors[program.input]
    if given.type in INTEGERS:
        quantized = sub.adopt(given, 0)
        sub.raw(Builtin.QUANTIZE, [x], [quantized], options=options("Quantize"), version=_QUANTIZE)
        x = quantized
    known[program.input] = x
    for operator in program.operators:
        for index in (*operator.inputs, *operator.outputs):
            if int(index) not in known:
                constant = program.data(int(index))
                buffer = 0 if constant is None else sub.file.buffer(constant.tobytes())
                known[int(index)] = sub.adopt(program.tensors[int(index)], buffer)
        sub.raw(
            program.code(operator),
            [known[int(i)] for i in operator.inputs],
            [known[int(i)] for i in operator.outputs],
            options=operator.builtinOptions,
            version=program.version(operator),
        )
    found = known[program.output]
    if program.tensors[program.output].type not in INTEGERS:
        return found
    shape = shape_of(program.tensors[program.output])
    return sub.operator(
        Builtin.DEQUANTIZE, [found], shape, options=options("Dequantize"), version=_DEQUANTIZE
    )
