"""An inference model that is there already, as the frozen first layers of a new one."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Builtin

from litert_author.errors import AuthorError
from litert_author.graph import Array, Dtype, Shape, Value
from litert_author.layers import Layer
from litert_author.program import (
    DTYPES,
    INTEGERS,
    Program,
    add_constant,
    name_of,
    read,
    rebatch,
    scale_of,
    shape_of,
    write_into,
)
from litert_author.runtime import SERVING, calls
from litert_author.scope import Scope
from litert_author.tflite_file import FileWriter, SubgraphWriter


def backbone(
    model: bytes | str | Path, output: str | int | None = None, *, values: int = 0
) -> Layer:
    """The layers of a `.tflite` file, frozen: what they make of x goes to the layers after.

    They are constants of the new file, once for all signatures, and in no parameter. A file with
    weights or activations in int8 stays so, and takes and gives real numbers; one that is quantized
    per channel becomes float32, since tflite-runtime 2.14 computes those wrongly.

    Args:
        model: the file or its path.
        output: name or index of the tensor that has the features; the file's output if None.
        values: how many ids there are, where the file takes ids (int32).

    Raises:
        AuthorError: no such file, or one with several inputs, state, branches, operators that are
            not built in, or shapes that are open in more than the batch.
    """
    if isinstance(model, bytes):
        data = model
    else:
        try:
            data = Path(model).read_bytes()
        except OSError as error:
            raise AuthorError(f"backbone: {model}: {error.strerror}") from None
    given = Backbone(data, output)
    takes = given.takes
    if takes == "int32" and values < 1:
        raise AuthorError("backbone: the file takes ids: say how many there are, with values=")

    def build(_scope: Scope, x: Value) -> Value:
        if x.shape[1:] != given.x_shape:
            raise AuthorError(
                f"backbone: the file takes {list(given.x_shape)}, not {list(x.shape[1:])}"
            )
        return x.graph.node("backbone", (x,), given.output_shape(x.shape[0]), model=given)

    return Layer("backbone", build, takes=takes, values=values if takes == "int32" else 0)


@dataclass(frozen=True, repr=False)
class Backbone:
    """A file's layers up to a tensor: run as they are, or written into another file."""

    file: bytes
    wanted: str | int | None

    def __repr__(self) -> str:
        return f"<backbone {hashlib.sha256(self.file).hexdigest()} {self.wanted!r}>"

    @functools.cached_property
    def _known(self) -> dict[bytes, Array]:
        """Features of batches that were asked for before: a probe asks for each several times."""
        return {}

    @functools.cached_property
    def program(self) -> Program:
        """The file as it is."""
        return read(self.file, self.wanted)

    @property
    def takes(self) -> Dtype:
        """What x is: ids, or real numbers also where the file has them in int8."""
        kind = self.program.tensors[self.program.input].type
        if kind == schema.TensorType.INT32:
            return "int32"
        if kind == schema.TensorType.FLOAT32 or kind in INTEGERS:
            return "float32"
        raise AuthorError(f"the file takes {DTYPES.get(kind, kind)}: float32, int8, uint8 or int32")

    @property
    def x_shape(self) -> Shape:
        """One example's."""
        return shape_of(self.program.tensors[self.program.input])[1:]

    @property
    def batch(self) -> int:
        """The batch in the file's shapes."""
        return (shape_of(self.program.tensors[self.program.input]) or (0,))[0]

    def output_shape(self, batch: int) -> Shape:
        """The features' shape.

        Raises:
            AuthorError: features without a batch, or of another type than numbers.
        """
        tensor = self.program.tensors[self.program.output]
        first, *rest = shape_of(tensor) or (0,)
        if not self.batch or not rest or first % self.batch:
            raise AuthorError(
                f"{name_of(tensor)} is {list(shape_of(tensor))}: no batch of features"
            )
        if tensor.type != schema.TensorType.FLOAT32 and tensor.type not in INTEGERS:
            raise AuthorError(f"{name_of(tensor)} is no float32, int8 or uint8")
        return (first // self.batch * batch, *rest)

    def write(self, sub: SubgraphWriter, x: int, batch: int) -> int:
        """Write the layers into a signature, after x; the features' tensor."""
        program = read(self.file, self.wanted)
        rebatch(program, self.batch, batch)
        if _is_per_channel(program):
            _widen(program)
        return write_into(program, sub, x)

    def run(self, x: Array) -> Array:
        """The features of each example, one after the other, through the runtime."""
        x = np.asarray(x, self.takes)
        key = x.tobytes()
        if key not in self._known:
            step = self.batch
            given = [(SERVING, {"x": x[i : i + step]}) for i in range(0, len(x), step)]
            found = calls(self.alone(), given)
            self._known[key] = np.concatenate([each["features"] for each in found])
        return self._known[key]

    def alone(self) -> bytes:
        """A file with these layers and nothing else, in the batch that they had."""
        file = FileWriter()
        sub = SubgraphWriter(file, SERVING)
        x = sub.input("x", (self.batch, *self.x_shape), self.takes)
        sub.output("features", self.write(sub, x, self.batch))
        sub.finish()
        return file.pack()


def _is_per_channel(program: Program) -> bool:
    return any(scale_of(program.tensors[i]).size > 1 for i in program.used())


def _widen(program: Program) -> None:
    """Make float32 of all that is quantized: numbers as they are meant, and no rounding between."""
    same: dict[int, int] = {}
    for index in sorted({*program.used(), program.input}):
        tensor = program.tensors[index]
        scale = scale_of(tensor)
        if not scale.size:
            continue
        values = program.data(index)
        if values is not None:
            shape = [1] * values.ndim
            if scale.size > 1:
                shape[tensor.quantization.quantizedDimension] = -1
            zero = np.asarray(tensor.quantization.zeroPoint, np.float64).reshape(shape)
            wide = (values.astype(np.float64) - zero) * scale.reshape(shape)
            same[index] = add_constant(program, name_of(tensor), wide.astype(np.float32))
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    kept = []
    for operator in program.operators:
        operator.inputs = [same.get(int(i), int(i)) for i in operator.inputs]
        if program.code(operator) in {Builtin.QUANTIZE, Builtin.DEQUANTIZE}:
            same[int(operator.outputs[0])] = operator.inputs[0]
        else:
            kept.append(operator)
    program.operators = kept
    program.output = same.get(program.output, program.output)
