"""How each operation is written as built-in operators that every runtime since 2.14 knows.

No operator here is one of those that need Flex or a delegate. What the runtimes do wrong and what
is done about it: pictures have four dimensions at most, a batch is fixed, and biases and
activations are fused where the product before them is used for nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
from ai_edge_litert.schema_py_generated import BuiltinOperator as Builtin
from ai_edge_litert.schema_py_generated import Padding, TensorType

from litert_author.graph import Value, needed, uses
from litert_author.tflite_file import FileWriter, SubgraphWriter, options

Lowering: TypeAlias = Callable[["SignatureWriter", Value], int]
Named: TypeAlias = Sequence[tuple[str, Value]]


class SignatureWriter:
    """Writes the part of a graph that one signature needs."""

    def __init__(self, file: FileWriter, key: str) -> None:
        self.sub = SubgraphWriter(file, key)
        self._index: dict[int, int] = {}
        self._handles: dict[str, int] = {}
        self._uses: dict[int, int] = {}

    def write(self, inputs: Named, outputs: Named, assigned: Sequence[tuple[Value, Value]]) -> None:
        """One signature.

        Args:
            inputs: what it takes, by name.
            outputs: what it gives, by name.
            assigned: parameters and their new values; all are read before any is assigned.
        """
        for name, value in inputs:
            self._index[value.number] = self.sub.input(name, value.shape, value.dtype)
        results = [*(value for _, value in outputs), *(value for _, value in assigned)]
        self._uses = uses(results)
        for value in needed(results):
            if value.op == "parameter":
                self.index(value)
        for value in results:
            self._compute(value)
        for parameter, value in assigned:
            handle = self._handle(parameter)
            self.sub.operator(
                Builtin.ASSIGN_VARIABLE,
                [handle, self.index(value)],
                None,
                options=options("AssignVariable"),
            )
        for name, value in outputs:
            self.sub.output(name, self.index(value))
        self.sub.finish()

    def _compute(self, result: Value) -> None:
        """Inputs first, without recursion: a graph over time is deep."""
        waiting = [result]
        while waiting:
            value = waiting[-1]
            missing = [i for i in value.inputs if i.number not in self._index]
            if value.number in self._index or not missing:
                waiting.pop()
                self.index(value)
            else:
                waiting.extend(reversed(missing))

    def once(self, value: Value) -> bool:
        """Whether the value is used in one place alone."""
        return self._uses.get(value.number, 0) == 1

    def index(self, value: Value) -> int:
        """The tensor of a value, written now if it has not been."""
        if value.number not in self._index:
            self._index[value.number] = self._write(value)
        return self._index[value.number]

    def _write(self, value: Value) -> int:
        if value.data is not None:
            return self.sub.constant(value.data)
        if value.op == "parameter":
            return self.sub.operator(
                Builtin.READ_VARIABLE,
                [self._handle(value)],
                value.shape,
                options=options("ReadVariable"),
            )
        return LOWERINGS[value.op](self, value)

    def _handle(self, parameter: Value) -> int:
        if parameter.name not in self._handles:
            self._handles[parameter.name] = self.sub.operator(
                Builtin.VAR_HANDLE,
                [],
                (),
                "resource",
                options=options("VarHandle", container="", sharedName=parameter.name),
            )
        return self._handles[parameter.name]


def _plain(code: int, kind: str = "", version: int = 1) -> Lowering:
    """An operator that takes what the operation takes, and no more."""

    def lower(w: SignatureWriter, v: Value) -> int:
        how = options(kind) if kind else None
        return w.sub.operator(
            code, [w.index(i) for i in v.inputs], v.shape, v.dtype, options=how, version=version
        )

    return lower


def _softmax(w: SignatureWriter, v: Value) -> int:
    return w.sub.operator(
        Builtin.SOFTMAX, [w.index(v.inputs[0])], v.shape, options=options("Softmax", beta=1.0)
    )


def _reduce(code: int) -> Lowering:
    def lower(w: SignatureWriter, v: Value) -> int:
        axes = w.sub.integers(v.attributes["axes"])
        how = options("Reducer", keepDims=v.attributes["keep"])
        return w.sub.operator(code, [w.index(v.inputs[0]), axes], v.shape, options=how)

    return lower


def _reshape(w: SignatureWriter, v: Value) -> int:
    shape = w.sub.integers(v.shape)
    how = options("Reshape", newShape=list(v.shape))
    return w.sub.operator(
        Builtin.RESHAPE, [w.index(v.inputs[0]), shape], v.shape, v.dtype, options=how
    )


def _transpose(w: SignatureWriter, v: Value) -> int:
    order = w.sub.integers(v.attributes["order"])
    how = options("Transpose")
    return w.sub.operator(Builtin.TRANSPOSE, [w.index(v.inputs[0]), order], v.shape, options=how)


def _slice(w: SignatureWriter, v: Value) -> int:
    begin, size = w.sub.integers(v.attributes["begin"]), w.sub.integers(v.shape)
    ins = [w.index(v.inputs[0]), begin, size]
    return w.sub.operator(Builtin.SLICE, ins, v.shape, v.dtype, options=options("Slice"))


def _pad(w: SignatureWriter, v: Value) -> int:
    around = np.stack([v.attributes["before"], v.attributes["after"]], axis=1).astype(np.int32)
    ins = [w.index(v.inputs[0]), w.sub.constant(around)]
    return w.sub.operator(Builtin.PAD, ins, v.shape, options=options("Pad"))


def _concat(w: SignatureWriter, v: Value) -> int:
    how = options("Concatenation", axis=v.attributes["axis"])
    ins = [w.index(i) for i in v.inputs]
    return w.sub.operator(Builtin.CONCATENATION, ins, v.shape, options=how)


def _broadcast(w: SignatureWriter, v: Value) -> int:
    ins = [w.index(v.inputs[0]), w.sub.integers(v.shape)]
    return w.sub.operator(
        Builtin.BROADCAST_TO, ins, v.shape, options=options("BroadcastTo"), version=2
    )


def _argmax(w: SignatureWriter, v: Value) -> int:
    ins = [w.index(v.inputs[0]), w.sub.integers([v.inputs[0].rank - 1])]
    how = options("ArgMax", outputType=TensorType.INT32)
    return w.sub.operator(Builtin.ARG_MAX, ins, v.shape, "int32", options=how)


def _to_float(w: SignatureWriter, v: Value) -> int:
    given = TensorType.BOOL if v.inputs[0].dtype == "bool" else TensorType.INT32
    how = options("Cast", inDataType=given, outDataType=TensorType.FLOAT32)
    return w.sub.operator(Builtin.CAST, [w.index(v.inputs[0])], v.shape, options=how)


def _matmul(w: SignatureWriter, v: Value) -> int:
    how = options("BatchMatMul", adjX=v.attributes["ta"], adjY=v.attributes["tb"])
    ins = [w.index(i) for i in v.inputs]
    return w.sub.operator(Builtin.BATCH_MATMUL, ins, v.shape, options=how)


def _one_hot(w: SignatureWriter, v: Value) -> int:
    depth = w.sub.constant(np.asarray(v.attributes["depth"], np.int32))
    ins = [w.index(v.inputs[0]), depth, w.sub.number(1.0), w.sub.number(0.0)]
    return w.sub.operator(Builtin.ONE_HOT, ins, v.shape, options=options("OneHot", axis=-1))


def _conv(w: SignatureWriter, v: Value) -> int:
    x, kernel = v.inputs
    stride, dilation = v.attributes["stride"], v.attributes["dilation"]
    how = options(
        "Conv2D",
        padding=_padding(v),
        strideW=stride,
        strideH=stride,
        dilationWFactor=dilation,
        dilationHFactor=dilation,
    )
    ins = [w.index(x), w.index(kernel), w.sub.constant(np.zeros(kernel.shape[0], np.float32))]
    version = 1 if dilation == 1 else 2
    return w.sub.operator(Builtin.CONV_2D, ins, v.shape, options=how, version=version)


def _conv_transpose(w: SignatureWriter, v: Value) -> int:
    dy, kernel = v.inputs
    stride = v.attributes["stride"]
    how = options("TransposeConv", padding=_padding(v), strideW=stride, strideH=stride)
    ins = [w.sub.integers(v.shape), w.index(kernel), w.index(dy)]
    return w.sub.operator(Builtin.TRANSPOSE_CONV, ins, v.shape, options=how)


def _padding(v: Value) -> int:
    return int(Padding.SAME if v.attributes["padding"] == "same" else Padding.VALID)


def _pool(code: int) -> Lowering:
    def lower(w: SignatureWriter, v: Value) -> int:
        n = v.attributes["window"]
        how = options(
            "Pool2D", padding=Padding.VALID, strideW=n, strideH=n, filterWidth=n, filterHeight=n
        )
        return w.sub.operator(code, [w.index(v.inputs[0])], v.shape, options=how)

    return lower


def _upsample(w: SignatureWriter, v: Value) -> int:
    size = w.sub.integers(v.shape[1:3])
    how = options("ResizeNearestNeighbor")
    ins = [w.index(v.inputs[0]), size]
    return w.sub.operator(Builtin.RESIZE_NEAREST_NEIGHBOR, ins, v.shape, options=how)


LOWERINGS: Final[dict[str, Lowering]] = {
    "abs": _plain(Builtin.ABS, "Abs"),
    "add": _plain(Builtin.ADD, "Add"),
    "argmax": _argmax,
    "avg_pool": _pool(Builtin.AVERAGE_POOL_2D),
    "backbone": lambda w, v: int(
        v.attributes["model"].write(w.sub, w.index(v.inputs[0]), v.inputs[0].shape[0])
    ),
    "broadcast": _broadcast,
    "concat": _concat,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "div": _plain(Builtin.DIV, "Div"),
    "equal": _plain(Builtin.EQUAL, "Equal"),
    "exp": _plain(Builtin.EXP, "Exp"),
    "gather": _plain(Builtin.GATHER, "Gather"),
    "greater": _plain(Builtin.GREATER, "Greater"),
    "log": _plain(Builtin.LOG),
    "log_softmax": _plain(Builtin.LOG_SOFTMAX, "LogSoftmax"),
    "logistic": _plain(Builtin.LOGISTIC),
    "matmul": _matmul,
    "max_pool": _pool(Builtin.MAX_POOL_2D),
    "maximum": _plain(Builtin.MAXIMUM, "MaximumMinimum"),
    "mean": _reduce(Builtin.MEAN),
    "minimum": _plain(Builtin.MINIMUM, "MaximumMinimum"),
    "mul": _plain(Builtin.MUL, "Mul"),
    "neg": _plain(Builtin.NEG, "Neg"),
    "one_hot": _one_hot,
    "pad": _pad,
    "relu": _plain(Builtin.RELU),
    "reshape": _reshape,
    "rsqrt": _plain(Builtin.RSQRT),
    "slice": _slice,
    "softmax": _softmax,
    "sqrt": _plain(Builtin.SQRT),
    "square": _plain(Builtin.SQUARE, "Square"),
    "sub": _plain(Builtin.SUB, "Sub"),
    "sum": _reduce(Builtin.SUM),
    "tanh": _plain(Builtin.TANH),
    "to_float": _to_float,
    "transpose": _transpose,
    "upsample": _upsample,
    "where": _plain(Builtin.SELECT_V2, "SelectV2"),
}
