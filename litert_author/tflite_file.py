"""A `.tflite` file, built up subgraph by subgraph and packed to bytes.

Flat indices in, flat indices out: what operations mean is `lowering`'s business. The schema is the
one that ai-edge-litert ships; equal calls in equal order give equal bytes.
"""

from collections.abc import Sequence
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from litert_author.graph import Array, Shape

FILE_IDENTIFIER: Final = b"TFL3"
SCHEMA_VERSION: Final = 3
_ALIGNMENT: Final = 16
# What the schema's first field for an operator can hold; later codes are in a second field.
_DEPRECATED_CODE_MAX: Final = 127

TYPES: Final = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "bool": schema.TensorType.BOOL,
    "resource": schema.TensorType.RESOURCE,
}


class FileWriter:
    """Buffers, operators and signatures of one file; each constant is in it once."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = SCHEMA_VERSION
        self.model.description = "potluck"
        self.model.subgraphs = []
        self.model.signatureDefs = []
        self.model.operatorCodes = []
        self.model.buffers = [schema.BufferT()]
        self._codes: dict[tuple[int, int, str], int] = {}
        self._buffers: dict[bytes, int] = {}

    @property
    def operators(self) -> tuple[tuple[int, int], ...]:
        """(built-in code, version) of each kind of operator, sorted."""
        return tuple(sorted((code, version) for code, version, _ in self._codes))

    def code(self, code: int, version: int) -> int:
        """The index of a kind of operator."""
        key = (code, version, "")
        if key not in self._codes:
            kind = schema.OperatorCodeT()
            kind.builtinCode = code
            kind.deprecatedBuiltinCode = min(code, _DEPRECATED_CODE_MAX)
            kind.version = version
            self._codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(kind)
        return self._codes[key]

    def buffer(self, data: bytes) -> int:
        """The index of a buffer with these bytes."""
        if data not in self._buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            self._buffers[data] = len(self.model.buffers)
            self.model.buffers.append(buffer)
        return self._buffers[data]

    def pack(self) -> bytes:
        """The file."""
        size = sum(len(buffer.data) for buffer in self.model.buffers if buffer.data is not None)
        builder = _Builder(size + (1 << 16))
        builder.Finish(self.model.Pack(builder), FILE_IDENTIFIER)
        return bytes(builder.Output())


class _Builder(flatbuffers.Builder):  # type: ignore[misc] # flatbuffers has no types
    """Arrays begin at multiples of 16, as the schema asks of buffers; the base class forgets."""

    def CreateNumpyVector(self, x: Array) -> int:  # noqa: N802 - its name in flatbuffers
        data = x.astype(x.dtype.newbyteorder("<")).tobytes()
        self.StartVector(x.itemsize, x.size, _ALIGNMENT)
        self.head = self.Head() - len(data)
        self.Bytes[self.Head() : self.Head() + len(data)] = data
        self.vectorNumElems = x.size
        return int(self.EndVector())


class SubgraphWriter:
    """One signature's operators, in the order in which they run."""

    def __init__(self, file: FileWriter, name: str) -> None:
        self.file = file
        self.name = name
        self.graph = schema.SubGraphT()
        self.graph.name = name
        self.graph.tensors = []
        self.graph.operators = []
        self.graph.inputs = []
        self.graph.outputs = []
        self._constants: dict[tuple[str, Shape, int], int] = {}
        self._inputs: list[tuple[str, int]] = []
        self._outputs: list[tuple[str, int]] = []

    def tensor(self, shape: Shape, dtype: str, *, name: str = "", buffer: int = 0) -> int:
        """A tensor's index; only those of a signature need a name."""
        tensor = schema.TensorT()
        tensor.shape = list(shape)
        tensor.type = TYPES[dtype]
        tensor.name = name or None
        tensor.buffer = buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, array: Array) -> int:
        """A constant tensor's index."""
        buffer = self.file.buffer(array.tobytes())
        key = (str(array.dtype), array.shape, buffer)
        if key not in self._constants:
            self._constants[key] = self.tensor(array.shape, str(array.dtype), buffer=buffer)
        return self._constants[key]

    def integers(self, values: Sequence[int]) -> int:
        """A constant vector of int32."""
        return self.constant(np.asarray(values, np.int32))

    def number(self, value: float) -> int:
        """A constant float32 without dimensions."""
        return self.constant(np.asarray(value, np.float32))

    def input(self, name: str, shape: Shape, dtype: str) -> int:
        """An input of the signature."""
        index = self.tensor(shape, dtype, name=name)
        self.graph.inputs.append(index)
        self._inputs.append((name, index))
        return index

    def output(self, name: str, index: int) -> None:
        """An output of the signature."""
        self.graph.outputs.append(index)
        self._outputs.append((name, index))

    def operator(
        self,
        code: int,
        inputs: Sequence[int],
        shape: Shape | None,
        dtype: str = "float32",
        *,
        options: Any = None,
        version: int = 1,
    ) -> int:
        """An operator with one output (none if `shape` is None); the output's index, or -1."""
        outputs = [] if shape is None else [self.tensor(shape, dtype)]
        self.raw(code, inputs, outputs, options=options, version=version)
        return outputs[0] if outputs else -1

    def adopt(self, tensor: Any, buffer: int) -> int:
        """A tensor of another file, with its type and quantization; its index."""
        made = schema.TensorT()
        made.shape, made.type = [int(size) for size in tensor.shape], tensor.type
        made.quantization, made.buffer = tensor.quantization, buffer
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def raw(
        self,
        code: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        options: Any,
        version: int = 1,
    ) -> None:
        """An operator whose outputs are there already; -1 is an input that is left out."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self.file.code(code, version)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            operator.builtinOptionsType = getattr(
                schema.BuiltinOptions, type(options).__name__.removesuffix("T")
            )
            operator.builtinOptions = options
        self.graph.operators.append(operator)

    def finish(self) -> None:
        """Put the subgraph and its signature into the file."""
        signature = schema.SignatureDefT()
        signature.signatureKey = self.name
        signature.subgraphIndex = len(self.file.model.subgraphs)
        signature.inputs = [_named(name, index) for name, index in self._inputs]
        signature.outputs = [_named(name, index) for name, index in self._outputs]
        self.file.model.subgraphs.append(self.graph)
        self.file.model.signatureDefs.append(signature)


def _named(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def options(name: str, **fields: Any) -> Any:
    """The schema's options of one kind of operator."""
    made = getattr(schema, f"{name}OptionsT")()
    for field, value in fields.items():
        setattr(made, field, value)
    return made
