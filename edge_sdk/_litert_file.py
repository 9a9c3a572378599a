"""A trainable file, looked at before native code opens it.

The interpreter trusts a file: an index past a list's end is a read past the list's end. So every
number in the file that native code would follow is followed here first, and what the file says of
itself is held against what its manifest says of it:

- operators are of `ALLOWED`, and exactly those kinds that `info.operators` names;
- each takes what is there before it: constants, inputs, variables, what operators made;
- signatures are the six of a trainable file, with the names, shapes and dtypes of `info`;
- what says shapes, axes or places is a constant, so that examples decide none of them;
- a variable has one shape and dtype wherever it is read or assigned;
- constants are as long as their shapes say; nothing is larger than a small device takes.

What passes may still compute something else, which is what the trial is for.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from edge_sdk._flatbuffer import FlatbufferError, Table
from edge_sdk._litert_operators import (
    ALLOWED,
    ASSIGN_VARIABLE,
    CONSTANT_INPUTS,
    OPTIONS_FORBIDDEN,
    OPTIONS_TEXTS,
    OPTIONS_VECTORS,
    READ_VARIABLE,
    VAR_HANDLE,
    Operator,
)
from edge_sdk.litert_errors import ArtefactRejectedError
from wire import limits
from wire.artefact import ArtefactInfo

# What the tensors of one graph may take together: 256 MB, as much as the largest model.
GRAPH_BYTES_MAX: Final = 268_435_456
METADATA_ALLOWED: Final = ("min_runtime_version", "CONVERSION_METADATA")

# Of the schema: table -> field numbers.
_MODEL: Final = {"codes": 1, "graphs": 2, "buffers": 4, "metadata": 6, "signatures": 7}
_MODEL_FIELDS_MAX: Final = 7

# float32, float16, int32, uint8, int64, bool, int8
_ITEM_BYTES: Final = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 9: 1}
_RESOURCE: Final = 13
# In place of a tensor that an operator can do without.
_NONE: Final = -1
# An operator's custom options, intermediates, large options and second kind of options.
_OPERATOR_FORBIDDEN: Final = (5, 8, 9, 10, 12)
_ALIGNED: Final = 4
_DTYPES: Final = {"float32": 0, "int32": 2}
_MOST_DATA: Final = limits.TRANSFER_BYTES_MAX


class TensorAbout(NamedTuple):
    """A tensor of a graph: `dynamic` is whether its first dimension is left open."""

    shape: tuple[int, ...]
    kind: int
    constant: bool
    dynamic: bool


class Port(NamedTuple):
    """What a signature takes or gives under one name."""

    shape: tuple[int, ...]
    kind: int


class Signature(NamedTuple):
    """A signature's inputs and outputs by name."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]


def signatures_of(info: ArtefactInfo) -> dict[str, Signature]:
    """The six signatures that a file with such an `info` has."""
    floats = _DTYPES["float32"]
    scalar = Port((), floats)
    x = Port((info.batch, *info.x_shape), _DTYPES[info.x_dtype])
    y = Port((info.batch, *info.y_shape), _DTYPES[info.y_dtype])
    w = Port((info.batch,), floats)
    parameters = {spec.name: Port(spec.shape, floats) for spec in info.parameters}
    step = {"x": x, "y": y, "w": w, "lr": scalar}
    return {
        "train": Signature(step, {"loss": scalar}),
        "train_proximal": Signature(step | {"mu": scalar, "clip": scalar}, {"loss": scalar}),
        "infer": Signature({"x": x}, {"output": Port((), floats)}),  # its shape is the model's own
        "evaluate": Signature({"x": x, "y": y, "w": w}, {"loss_sum": scalar, "right_sum": scalar}),
        "get_parameters": Signature({}, parameters),
        "set_parameters": Signature(parameters, {"ok": scalar}),
    }


def check_file(data: bytes, info: ArtefactInfo) -> None:
    """Raise unless the file is well formed and what `info` says of it.

    Raises:
        ArtefactRejectedError: it is not; the text says where.
    """
    try:
        _check(data, info)
    except FlatbufferError as error:
        raise ArtefactRejectedError(f"the file is damaged: {error}") from error


def _check(data: bytes, info: ArtefactInfo) -> None:
    model = Table.root(data, b"TFL3")
    if any(field > _MODEL_FIELDS_MAX for field in model.fields):
        raise ArtefactRejectedError("the file has parts that potluck does not know")
    for entry in model.tables(_MODEL["metadata"]):
        name = entry.string(0)
        if name not in METADATA_ALLOWED:
            raise ArtefactRejectedError(f"the file has metadata {name!r}, which is not allowed")
    codes = _operators(model, info)
    buffers = [_buffer_bytes(buffer) for buffer in model.tables(_MODEL["buffers"])]
    if not buffers or buffers[0]:
        raise ArtefactRejectedError("the file's first buffer is not empty")
    variables: dict[str, Port] = {}
    graphs = [_Walk(table, codes, buffers, variables) for table in model.tables(_MODEL["graphs"])]
    _check_signatures(model, graphs, info)


def _operators(model: Table, info: ArtefactInfo) -> list[int]:
    """The kinds of operators, by their place in the file's list."""
    found: list[tuple[int, int]] = []
    for table in model.tables(_MODEL["codes"]):
        code = max(table.scalar(0, "i8"), table.scalar(3, "i32"))
        if table.has(1) or code not in ALLOWED:
            called = f"custom {table.string(1)!r}" if table.has(1) else f"number {code}"
            raise ArtefactRejectedError(f"the file has an operator that is not allowed: {called}")
        found.append((code, table.scalar(2, "i32", 1)))
    if sorted(set(found)) != sorted(set(info.operators)):
        more = sorted(set(found) - set(info.operators))
        less = sorted(set(info.operators) - set(found))
        raise ArtefactRejectedError(
            f"operators (code, version) that its manifest does not name: {more}; that it names and"
            f" the file does not have: {less}"
        )
    return [code for code, _version in found]


def _buffer_bytes(buffer: Table) -> int:
    """How long a buffer is; its data lie in the file, aligned for numbers of four bytes."""
    if buffer.scalar(1, "u64") > 1 or buffer.scalar(2, "u64") > 1:
        raise ArtefactRejectedError("the file keeps data outside of its tables")
    start, count = buffer.vector(0, 1, most=_MOST_DATA)
    if count and start % _ALIGNED:
        raise ArtefactRejectedError(f"at {start}: data that are not aligned")
    return count


class _Walk:
    """One graph, operator by operator in the order in which they run.

    Args:
        table: the graph.
        codes: the file's kinds of operators.
        buffers: how long each of its buffers is.
        variables: what is known of variables by name; graphs share them.
    """

    def __init__(
        self, table: Table, codes: list[int], buffers: list[int], variables: dict[str, Port]
    ) -> None:
        self._codes = codes
        self._variables = variables
        self._handles: dict[int, str] = {}
        self.tensors = [_tensor(entry, buffers) for entry in table.tables(0)]
        self.inputs, self.outputs = table.integers(1), table.integers(2)
        size = sum(math.prod(t.shape) * _ITEM_BYTES.get(t.kind, 0) for t in self.tensors)
        if size > GRAPH_BYTES_MAX:
            raise ArtefactRejectedError(
                f"a graph's tensors take {size} bytes, at most {GRAPH_BYTES_MAX}"
            )
        self._check_indices((*self.inputs, *self.outputs))
        self._ready = [tensor.constant for tensor in self.tensors]
        for index in self.inputs:
            if self._ready[index]:
                raise ArtefactRejectedError("a graph's input is given twice, or is a constant")
            self._ready[index] = True
        for entry in table.tables(3):
            self._operator(entry)
        if not all(self._ready[index] for index in self.outputs):
            raise ArtefactRejectedError("a graph gives what nothing computes")

    def _operator(self, table: Table) -> None:
        """Of what it is made, and that what it takes is there before it."""
        index = table.scalar(0, "u32")
        if index >= len(self._codes):
            raise ArtefactRejectedError(f"operator kind {index} of {len(self._codes)}")
        code = self._codes[index]
        about = ALLOWED[code]
        given, made = table.integers(1), table.integers(2)
        taken = tuple(index for index in given if index != _NONE)
        if not about.inputs_min <= len(taken) <= len(given) <= about.inputs_max:
            raise ArtefactRejectedError(f"{about.name} of {len(given)} tensors")
        if not about.outputs_min <= len(made) <= about.outputs_max:
            raise ArtefactRejectedError(f"{about.name} makes {len(made)} tensors")
        if any(table.has(field) for field in _OPERATOR_FORBIDDEN):
            raise ArtefactRejectedError(f"{about.name} has options of its own")
        table.vector(7, 1)
        name = _options(table, about)
        self._check_indices((*taken, *made))
        self._check_given(code, given)
        for output in made:
            if self._ready[output]:
                raise ArtefactRejectedError(f"{about.name} makes what is there already")
            self._ready[output] = True
        self._check_handles(code, taken, made)
        if code == VAR_HANDLE:
            self._handles[made[0]] = name
        elif code in {READ_VARIABLE, ASSIGN_VARIABLE}:
            self._variable(self._handles[taken[0]], made[0] if made else taken[1])

    def _variable(self, name: str, value: int) -> None:
        """A variable is of one shape wherever it is read or assigned."""
        about = self.tensors[value]
        port = Port(about.shape, about.kind)
        if not name or self._variables.setdefault(name, port) != port:
            raise ArtefactRejectedError(f"variable {name!r} has no name, or more than one shape")

    def _check_given(self, code: int, given: tuple[int, ...]) -> None:
        """What an operator takes is there; what says a shape was there from the start."""
        name = ALLOWED[code].name
        if not all(self._ready[index] for index in given if index != _NONE):
            raise ArtefactRejectedError(f"{name} takes what is not there yet")
        for place in CONSTANT_INPUTS.get(code, ()):
            index = given[place] if place < len(given) else _NONE
            if index != _NONE and not self.tensors[index].constant:
                raise ArtefactRejectedError(f"{name} of a shape that is computed")

    def _check_handles(self, code: int, taken: tuple[int, ...], made: tuple[int, ...]) -> None:
        """VAR_HANDLE makes handles of variables, READ_ and ASSIGN_VARIABLE take one, first."""
        takes = [index for index in taken if self.tensors[index].kind == _RESOURCE]
        gives = [index for index in made if self.tensors[index].kind == _RESOURCE]
        first = list(taken[:1]) if code in {READ_VARIABLE, ASSIGN_VARIABLE} else []
        if takes != first or gives != (list(made) if code == VAR_HANDLE else []):
            raise ArtefactRejectedError(f"{ALLOWED[code].name} with a variable in a wrong place")
        if any(index not in self._handles for index in takes):
            raise ArtefactRejectedError(f"{ALLOWED[code].name} of a variable that is not there")

    def _check_indices(self, indices: tuple[int, ...]) -> None:
        for index in indices:
            if not 0 <= index < len(self.tensors):
                raise ArtefactRejectedError(f"tensor {index} of {len(self.tensors)}")


def _tensor(table: Table, buffers: list[int]) -> TensorAbout:
    if table.has(6) or table.has(9) or table.scalar(5, "u8") or table.scalar(10, "u32"):
        raise ArtefactRejectedError("a tensor is sparse, of variants, external or stateful")
    shape, kind, buffer = table.integers(0), table.scalar(1, "i8"), table.scalar(2, "u32")
    open_shape = table.integers(7)
    table.string(3)
    if buffer >= len(buffers):
        raise ArtefactRejectedError(f"a tensor is in buffer {buffer} of {len(buffers)}")
    if kind not in _ITEM_BYTES and kind != _RESOURCE:
        raise ArtefactRejectedError(f"a tensor is of a dtype that is not allowed: {kind}")
    if len(shape) > limits.TENSOR_RANK_MAX or any(not 0 <= n <= GRAPH_BYTES_MAX for n in shape):
        raise ArtefactRejectedError(f"a tensor has a shape that cannot be: {list(shape)[:16]}")
    dynamic = bool(open_shape) and open_shape != shape
    if dynamic and ((-1, *shape[1:]) != open_shape or shape[:1] != (1,)):
        raise ArtefactRejectedError(f"a tensor leaves more open than the batch: {list(open_shape)}")
    expected = math.prod(shape) * _ITEM_BYTES.get(kind, 0)
    if buffers[buffer] and (buffers[buffer] != expected or kind == _RESOURCE):
        raise ArtefactRejectedError(f"a constant has {buffers[buffer]} bytes, not {expected}")
    _check_quantization(table.table(4), shape)
    return TensorAbout(shape, kind, buffers[buffer] > 0, dynamic)


def _check_quantization(table: Table | None, shape: tuple[int, ...]) -> None:
    """One scale for a tensor, or one for each step of its axis."""
    if table is None:
        return
    _start, scales = table.vector(2, 4)
    _start, zeros = table.vector(3, 8)
    for field in (0, 1):
        table.vector(field, 4)
    axis = table.scalar(6, "i32")
    if table.has(5) or not 0 <= axis <= max(len(shape) - 1, 0):
        raise ArtefactRejectedError("a tensor is quantized in a way that is not allowed")
    if scales not in {0, 1, *shape[axis : axis + 1]} or zeros not in {scales, 0, 1}:
        raise ArtefactRejectedError(f"a tensor of {list(shape)} has {scales} scales")


def _options(table: Table, about: Operator) -> str:
    """The table of options, field by field; a variable's name if it has one."""
    kind = table.scalar(3, "u8")
    options = table.table(4)
    if (options is None) != (kind == 0) or kind not in (0, about.options):
        raise ArtefactRejectedError(f"{about.name} has another operator's options")
    if options is None:
        return ""
    text = ""
    for field in options.fields:
        if field in OPTIONS_VECTORS.get(kind, ()):
            options.integers(field)
        elif field in OPTIONS_TEXTS.get(kind, ()):
            text = options.string(field)
        elif field in OPTIONS_FORBIDDEN.get(kind, ()) or not options.inline_ok(field):
            raise ArtefactRejectedError(f"{about.name} has options that potluck does not know")
    return text


def _check_signatures(model: Table, graphs: list[_Walk], info: ArtefactInfo) -> None:
    expected = signatures_of(info)
    found: dict[str, int] = {}
    for table in model.tables(_MODEL["signatures"]):
        key, index = table.string(2), table.scalar(4, "u32")
        if key not in expected or key in found or index >= len(graphs):
            raise ArtefactRejectedError(f"signature {key!r} is none of a trainable file, or twice")
        found[key] = index
        graph = graphs[index]
        sides = ((0, graph.inputs, expected[key].inputs), (1, graph.outputs, expected[key].outputs))
        for field, indices, ports in sides:
            named = {entry.string(0): entry.scalar(1, "u32") for entry in table.tables(field)}
            if sorted(named.values()) != sorted(indices) or named.keys() != ports.keys():
                raise ArtefactRejectedError(
                    f"signature {key!r} has {sorted(named)[:8]}, expected {sorted(ports)[:8]}"
                )
            _check_ports(key, named, graph.tensors, ports)
    missing = sorted(expected.keys() - found.keys())
    if missing or sorted(found.values()) != list(range(len(graphs))):
        raise ArtefactRejectedError(f"signatures are missing: {missing}, or graphs have none")


def _check_ports(
    key: str, named: Mapping[str, int], tensors: list[TensorAbout], ports: Mapping[str, Port]
) -> None:
    for name, index in named.items():
        tensor, port = tensors[index], ports[name]
        shape = tensor.shape
        if key == "infer":
            # The batch may be open there; callers pad to it anyway. The output is the model's own.
            shape = (port.shape[0], *shape[1:]) if tensor.dynamic and port.shape else shape
            shape = port.shape if name == "output" else shape
        elif tensor.dynamic:
            raise ArtefactRejectedError(f"{key}: {name} has an open dimension")
        if shape != port.shape or tensor.kind != port.kind:
            raise ArtefactRejectedError(
                f"{key}: {name} is {list(tensor.shape)} of dtype {tensor.kind}, its manifest says"
                f" {list(port.shape)} of {port.kind}"
            )
