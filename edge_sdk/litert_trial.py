"""The trial of a trainable file: opened and stepped once, in a process that may die of it.

Run as a script it reads a request from its input, limits its own memory and time, opens
the file, and writes one line of JSON: why the file is not what is said of it, or that it is. It
imports NumPy and the interpreter alone, and shares nothing else with the app.

The file's signatures are held against its probe, and against each other: what `evaluate` says is
what `train` says before its step and what follows from the output of `infer`; `train_proximal` with
mu 0 and no clip is `train`; an example of weight 0 changes nothing; a step is as long as its rate.
So an operator that was changed in any of them shows, unless what it computes is the same.
"""

import importlib
import json
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Batch: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
Run: TypeAlias = Callable[..., dict[str, NDArray[Any]]]

RUNTIMES: Final = (
    ("ai-edge-litert", "ai_edge_litert.interpreter"),
    ("tflite-runtime", "tflite_runtime.interpreter"),
)
_ABSOLUTE: Final = 2e-5
# Rounding in any direction, beside what is allowed along the way that a parameter went.
_WAY: Final = 3.0
_REASON_CHARS: Final = 200


class NoRuntimeError(Exception):
    """No interpreter can be imported; the text says what to install."""


class Mismatch(Exception):  # noqa: N818 - it is what the trial is after, and no error of ours
    """The file computes something else than is said of it."""


def interpreter_class() -> tuple[str, Any]:
    """The interpreter of this device and its name and version: ai-edge-litert's or the older one.

    Raises:
        NoRuntimeError: there is none, or one that does not go with this NumPy.
    """
    told: list[str] = []
    for name, module in RUNTIMES:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, SystemError, AttributeError) as error:
            told.append(f"{name} does not load: {error}")
            continue
        if name == "tflite-runtime" and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            told.append("tflite-runtime needs NumPy 1: pip install 'potluck[tflite]'")
            continue
        return f"{name} {_version(name)}", found.Interpreter
    raise NoRuntimeError(
        "; ".join(told)
        or "no LiteRT interpreter is installed: pip install 'potluck[litert]', or on 32-bit ARM and"
        " other older boards with Python 3.11 'potluck[tflite]'"
    )


def _version(name: str) -> str:
    import importlib.metadata  # noqa: PLC0415 - where the interpreter is loaded

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def open_file(data: bytes, interpreter: Any) -> Run:
    """A function that runs a signature by its name: `run("train", x=x, ...)`."""
    opened = interpreter(model_content=data, num_threads=1)
    runners: dict[str, Any] = {}

    def run(signature: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        runner = runners.get(signature)
        if runner is None:
            runner = runners[signature] = opened.get_signature_runner(signature)
        made: dict[str, NDArray[Any]] = runner(**inputs)
        return made

    return run


class Trial:
    """What is asked of a file, and asking it.

    Args:
        run: runs a signature.
        first: the parameters to start from.
        batches: of the probe.
        about: of `Probe` and `ArtefactInfo`: `losses`, `moves`, `proximal_losses`,
            `proximal_moves`, `mu`, `clip`, `marks`, `learning_rate`, `tolerance`, `loss`,
            `classes`.
        signs: what `marks` are measured along, a parameter each; none where there are no marks.
    """

    def __init__(
        self,
        run: Run,
        first: Arrays,
        batches: Sequence[Batch],
        about: Mapping[str, Any],
        signs: Sequence[NDArray[Any]] = (),
    ) -> None:
        self._run = run
        self._first = first
        self._batches = batches
        self._about = about
        self._signs = signs
        self._tolerance = float(about["tolerance"])
        self._rate = np.float32(about["learning_rate"])
        # A loss of nearly nothing after large ones has the rounding of the large ones.
        self._scale = max(map(abs, (*about["losses"], *about["proximal_losses"])))
        self._ones = np.ones(len(batches[0][0]), np.float32)

    def examine(self) -> None:
        """Ask all of it.

        Raises:
            Mismatch: the file computes something else; the text says what.
        """
        moved = self._steps()
        self._proximal_steps(moved)
        self._rates()
        self._masks()

    def _steps(self) -> list[float]:
        """The probe's steps; each batch is evaluated before, from two sides."""
        self._begin()
        for number, (x, y) in enumerate(self._batches):
            evaluated = self._evaluate(x, y, self._ones)
            loss = self._step("train", x, y, self._ones)
            self._loss(loss, self._about["losses"][number], f"the loss of step {number}")
            what = f"what evaluate says before step {number}"
            self._close(evaluated, loss * len(x), what, self._scale * len(x))
        moved = self._moves()
        for found, expected, name in zip(moved, self._about["moves"], self._first, strict=False):
            self._close(found, expected, f"how far {name} moved")
        self._marks(moved)
        return moved

    def _marks(self, moved: list[float]) -> None:
        """Which way the parameters went, not only how far."""
        now = self._parameters()
        told = zip(self._about["marks"], moved, self._signs, self._first.items(), strict=False)
        for expected, far, signs, (name, first) in told:
            found = float(((now[name] - first).astype(np.float64) * signs).sum())
            self._close(found, expected, f"which way {name} moved", _WAY * far)

    def _proximal_steps(self, moved: list[float]) -> None:
        """As `train` without mu and clip, and as the probe says with them."""
        off = {"mu": np.float32(0.0), "clip": np.float32(0.0)}
        on = {"mu": np.float32(self._about["mu"]), "clip": np.float32(self._about["clip"])}
        self._begin()
        for number, (x, y) in enumerate(self._batches):
            loss = self._step("train_proximal", x, y, self._ones, **off)
            self._loss(loss, self._about["losses"][number], f"the loss of proximal step {number}")
        for found, expected, name in zip(self._moves(), moved, self._first, strict=True):
            self._close(found, expected, f"how far {name} moved by proximal steps")
        self._begin()
        for (x, y), expected in zip(self._batches, self._about["proximal_losses"], strict=False):
            loss = self._step("train_proximal", x, y, self._ones, **on)
            self._loss(loss, expected, "the loss of a proximal step with mu and clip")
        told = self._about["proximal_moves"]
        for found, expected, name in zip(self._moves(), told, self._first, strict=False):
            self._close(found, expected, f"how far {name} moved by proximal steps with mu and clip")

    def _rates(self) -> None:
        """From fresh slots, a step is proportional to its rate: of SGD, momentum and Adam."""
        x, y = self._batches[0]
        for name, more in (("train", {}), ("train_proximal", {"mu": 0.0, "clip": 0.0})):
            options: dict[str, Any] = {key: np.float32(value) for key, value in more.items()}
            moved = []
            for factor in (1.0, 0.5, 0.0):
                self._begin()
                self._step(name, x, y, self._ones, rate=self._rate * np.float32(factor), **options)
                moved.append(self._moves())
            for whole, half, none in zip(*moved, strict=True):
                self._close(half, whole / 2.0, f"how far half a rate of {name} moves")
                self._close(none, 0.0, f"how far a rate of 0 of {name} moves")

    def _masks(self) -> None:
        """Examples of weight 0 say nothing; a batch of them alone moves nothing.

        One alone weighs as much as a whole batch: what is cut off at a bound shows then.
        """
        x, y = self._batches[-1]
        half, alone = np.zeros_like(self._ones), np.zeros_like(self._ones)
        half[::2] = alone[0] = 1.0
        for name, more in (("train", {}), ("train_proximal", {"mu": 0.0, "clip": 0.0})):
            options: dict[str, Any] = {key: np.float32(value) for key, value in more.items()}
            for weights in (half, alone):
                self._mask(name, weights, options)
            self._begin()
            nothing = np.zeros_like(self._ones)
            loss = self._step(name, x, y, nothing, **options)
            self._close(loss, 0.0, f"the loss of no example by {name}")
            self._close(max(self._moves(), default=0.0), 0.0, f"how far no example moves {name}")
            self._close(self._evaluate(x, y, nothing), 0.0, "what evaluate says of no example")

    def _mask(self, name: str, weights: NDArray[np.float32], options: dict[str, Any]) -> None:
        """A step with some examples, and again with others in place of those that are masked."""
        x, y = self._batches[-1]
        other_x, other_y = x.copy(), y.copy()
        other_x[weights == 0.0], other_y[weights == 0.0] = x[:1], y[:1]
        moved = []
        for inputs in ((x, y), (other_x, other_y)):
            self._begin()
            evaluated = self._evaluate(*inputs, weights)
            loss = self._step(name, *inputs, weights, **options)
            self._close(evaluated, loss * float(weights.sum()), f"a masked step of {name}")
            moved.append(self._moves())
        for found, expected in zip(*moved, strict=True):
            self._close(found, expected, f"what masked examples do to a step of {name}")

    def _begin(self) -> None:
        """Set the first parameters, and see that they are what is got."""
        self._scalars(self._run("set_parameters", **self._first), ("ok",))
        for name, array in self._parameters().items():
            if array.tobytes() != self._first[name].tobytes():
                raise Mismatch(f"{name} is not what it was set to")

    def _parameters(self) -> dict[str, NDArray[np.float32]]:
        got = self._run("get_parameters")
        if got.keys() != self._first.keys():
            raise Mismatch("get_parameters gives others than set_parameters takes")
        for name, array in got.items():
            if array.shape != self._first[name].shape or array.dtype != np.float32:
                raise Mismatch(f"get_parameters gives {name} as {array.dtype}{list(array.shape)}")
            if not np.isfinite(array).all():
                raise Mismatch(f"{name} is not finite")
        return got

    def _moves(self) -> list[float]:
        """How far each parameter is from where it began (L2)."""
        now = self._parameters()
        return [
            float(np.sqrt(np.square((now[name] - first).astype(np.float64)).sum()))
            for name, first in self._first.items()
        ]

    def _step(
        self,
        name: str,
        x: NDArray[Any],
        y: NDArray[Any],
        w: NDArray[Any],
        rate: np.float32 | None = None,
        **more: np.float32,
    ) -> float:
        lr = self._rate if rate is None else rate
        return self._scalars(self._run(name, x=x, y=y, w=w, lr=lr, **more), ("loss",))[0]

    def _evaluate(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[Any]) -> float:
        """The sum of losses that `evaluate` gives, which must follow from what `infer` gives."""
        given = self._run("evaluate", x=x, y=y, w=w)
        loss_sum, right_sum = self._scalars(given, ("loss_sum", "right_sum"))
        made = self._run("infer", x=x)
        if made.keys() != {"output"}:
            raise Mismatch("infer gives other than an output")
        kind, classes = self._about["loss"], int(self._about["classes"])
        expected = (*y.shape, classes) if kind == "softmax" else y.shape
        output = made["output"]
        if output.shape != expected or output.dtype != np.float32:
            raise Mismatch(f"infer gives {output.dtype}{list(output.shape)}, not {list(expected)}")
        losses, right, unsure = scored(kind, output.astype(np.float64), y)
        weights = w.astype(np.float64)
        self._close(loss_sum, float(losses @ weights), "the loss of evaluate beside that of infer")
        if right is not None and abs(right_sum - right @ weights) > unsure + 1e-3:
            raise Mismatch(f"evaluate says {right_sum} are right, infer {right @ weights}")
        return loss_sum

    def _scalars(self, given: Arrays, names: tuple[str, ...]) -> list[float]:
        if sorted(given) != sorted(names):
            raise Mismatch(f"it gives {sorted(given)[:8]}, not {sorted(names)}")
        for name in names:
            if given[name].shape != () or given[name].dtype != np.float32:
                raise Mismatch(f"{name} is {given[name].dtype}{list(given[name].shape)}")
        return [float(given[name]) for name in names]

    def _loss(self, found: float, expected: float, what: str) -> None:
        self._close(found, expected, what, self._scale)

    def _close(self, found: float, expected: float, what: str, scale: float = 0.0) -> None:
        bound = self._tolerance * max(abs(expected), scale) + _ABSOLUTE
        if not abs(found - expected) <= bound:  # NaN is not close to anything
            raise Mismatch(f"{what}: {found:.7g}, expected {expected:.7g}")


def scored(
    kind: str, output: NDArray[np.float64], y: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, float]:
    """Each example's loss, whether it is right, and of how many that is not sure.

    Over the positions or outputs of an example it is the mean.
    """
    count = len(output)
    if kind == "squared":
        return np.square(output - y).reshape(count, -1).mean(axis=1), None, 0.0
    if kind == "sigmoid":  # log(1 + exp(-|s|)) keeps its digits where exp(s) is huge or nothing
        losses = np.maximum(output, 0.0) - output * y + np.log1p(np.exp(-np.abs(output)))
        return losses.reshape(count, -1).mean(axis=1), None, 0.0
    shifted = output - output.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p, y[..., None].astype(np.int64), axis=-1)[..., 0]
    right = (output.argmax(axis=-1) == y).astype(np.float64)
    top = np.sort(output, axis=-1)[..., -2:]
    unsure = float((top[..., -1] - top[..., 0] < 1e-4 * (1.0 + np.abs(top[..., -1]))).sum())
    return losses.reshape(count, -1).mean(axis=1), right.reshape(count, -1).mean(axis=1), unsure


def answer(request: Mapping[str, Any], data: bytes, arrays: list[NDArray[Any]]) -> dict[str, Any]:
    """Open the file, examine it, and say why it is refused, or nothing."""
    try:
        runtime, interpreter = interpreter_class()
    except NoRuntimeError as error:
        return {"refused": str(error), "runtime": ""}
    limit(int(request["memory_bytes"]), int(request["cpu_s"]))
    names = request["parameters"]
    first = dict(zip(names, arrays, strict=False))
    marks = len(request["marks"])
    signs, rest = arrays[len(names) : len(names) + marks], arrays[len(names) + marks :]
    batches = list(zip(rest[::2], rest[1::2], strict=True))
    try:
        Trial(open_file(data, interpreter), first, batches, request, signs).examine()
    except Mismatch as error:
        return {"refused": str(error)[:_REASON_CHARS], "runtime": runtime}
    except MemoryError:
        return {"refused": "it takes too much memory", "runtime": runtime}
    except Exception as error:  # noqa: BLE001 - whatever the interpreter raises, it refuses the file
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        return {"refused": said[:_REASON_CHARS], "runtime": runtime}
    return {"refused": "", "runtime": runtime}


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Take no more memory than this beyond what is taken now, no core file, no file, less time."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CPU: cpu_s}
    taken = _address_space()
    if taken:
        wanted[resource.RLIMIT_AS] = taken + memory_bytes
    for kind, most in wanted.items():
        _soft, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)  # noqa: PLW2901 - not above it
        resource.setrlimit(kind, (most, most))


def _address_space() -> int:
    """How many bytes the process has mapped; 0 where that cannot be read."""
    try:
        with open("/proc/self/statm", encoding="ascii") as about:  # noqa: PTH123 - pathlib is one more import
            return int(about.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def read_request(file: BinaryIO) -> tuple[dict[str, Any], bytes, list[NDArray[Any]]]:
    """What `request_bytes` wrote."""
    request: dict[str, Any] = json.loads(file.read(struct.unpack("<I", file.read(4))[0]))
    data = file.read(request["file_bytes"])
    arrays = []
    for dtype, shape in request["arrays"]:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(file.read(count * kind.itemsize), kind).reshape(shape).copy())
    return request, data, arrays


def request_bytes(about: dict[str, Any], data: bytes, arrays: list[NDArray[Any]]) -> bytes:
    """A request: its length, what it is about as JSON, the file, the arrays."""
    told = about | {
        "file_bytes": len(data),
        "arrays": [[array.dtype.str, list(array.shape)] for array in arrays],
    }
    head = json.dumps(told).encode()
    return b"".join(
        [struct.pack("<I", len(head)), head, data, *(array.tobytes() for array in arrays)]
    )


def main() -> None:
    """Read a request, answer it. What native code prints goes nowhere."""
    mine = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - as above
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    request, data, arrays = read_request(sys.stdin.buffer)
    mine.write(json.dumps(answer(request, data, arrays)).encode())
    mine.flush()
    os._exit(0)  # what the file may have done to the heap is not asked to be tidy


if __name__ == "__main__":
    main()
