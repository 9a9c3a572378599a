"""A trainable `.tflite` file as a trainer, on ai-edge-litert or tflite-runtime 2.14.

The interpreter believes what it is given: a parameter of another shape corrupts the heap, a label
out of range reads beside it. So nothing is handed over that was not checked in the form in which it
is handed over: parameters at each piece of work, examples when they are gathered into batches, in
copies that nobody else has.

The file's batch is fixed. A plan's smaller batch is padded, and the padding weighs nothing; the
last batch of an epoch too. So a step is one of SGD on `plan.batch` examples, as with every trainer.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.examples import Arrays, Source, current
from edge_sdk.litert_errors import LiteRTError
from edge_sdk.trainer import EvalResult, Model, Stop, TrainingStoppedError, TrainResult
from wire import Manifest, Plan, Schema, Tensors
from wire.artefact import ArtefactInfo
from wire.errors import NotFiniteError

if TYPE_CHECKING:
    from edge_sdk._litert_pool import Opened

# So much of the data is gathered into batches at a time: in a cache, and little for any board.
_BLOCK_BYTES: Final = 1_048_576
_MASK: Final = 2**64 - 1
# Bounds of a gradient whose squares float32 can hold: less would be 0, which is no bound.
_CLIP_MIN: Final = 1e-18
_CLIP_MAX: Final = 1e18

Batch: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]


class LiteRTTrainer:
    """A file that is trained on one device's data, by one thread.

    The first in a process that names a file tries it in a process of its own, which takes some
    0.2 s; see `docs/how-to/litert.md`.

    Args:
        manifest: with the artefact, as the task's `model()` returns it or as `device.manifest`.
        data: an `ExampleStore`; a function that returns `(train, holdout)`, each `(x, y)`; or
            `(x, y)`. Asked at each piece of work.
        holdout: `(x, y)` that is never trained on, instead of that of `data`.
        seed: of the device; with the plan's seed it fixes the order of examples.
        gradient_norm_max: the gradient's L2 bound over all parameters at each step; 0 for none.
        state_dir: where it is kept that the file stood its trial on this device, so that it is
            not tried again at every start; None for nowhere.

    Raises:
        LiteRTError: no artefact, or no interpreter is installed.
        ArtefactRejectedError: the file may not be opened here; the text says why.
        TooLargeError, DigestMismatchError: it is another file.
    """

    def __init__(
        self,
        manifest: Manifest | None,
        data: Source,
        *,
        holdout: Sequence[ArrayLike] | None = None,
        seed: int = 0,
        gradient_norm_max: float = 0.0,
        state_dir: str | Path | None = None,
    ) -> None:
        from edge_sdk import _litert_pool, _litert_trust  # noqa: PLC0415 - loaded when used

        if gradient_norm_max and not _CLIP_MIN <= gradient_norm_max <= _CLIP_MAX:
            raise LiteRTError(
                f"gradient_norm_max is {gradient_norm_max}: 0, or {_CLIP_MIN:g} to {_CLIP_MAX:g}"
            )
        self._artefact = _litert_trust.trust(
            manifest, state_dir=None if state_dir is None else Path(state_dir)
        )
        self._info = self._artefact.info
        self._schema = Schema(self._info.parameters)
        self._data = data
        self._holdout = holdout
        self._seed = seed
        self._clip = np.float32(gradient_norm_max)
        self._pool = _litert_pool.pool

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """`plan.local_epochs` over the examples, with FedProx's term where the plan has one.

        Raises:
            TrainingStoppedError: `stop()` said so between two batches.
            LiteRTError: the plan's batch is larger than the file's, or the examples are not such
                as the file takes.
            SchemaMismatchError, NotFiniteError: the model's tensors are not the file's; or the
                loss left the range of float32.
        """
        examples = self._examples(current(self._data, self._holdout).train)
        count = len(examples[0])
        if count == 0:
            return TrainResult({}, 0)
        if plan.batch > self._info.batch:
            raise LiteRTError(
                f"the plan's batch is {plan.batch}, the file's {self._info.batch}: set [rounds]"
                f" batch to at most that, or build the file with batch={plan.batch}"
            )
        order_bits = np.random.Philox(key=(plan.seed * 2_654_435_761 + self._seed) & _MASK)
        batches = _Batches(self._info, examples, plan.batch)
        rate = np.float32(plan.learning_rate)
        loss_sum = 0.0
        with self._pool.lent(self._artefact) as opened:
            self._put(opened, model.tensors)
            step = opened.runner("train")
            if plan.proximal_mu or self._clip:
                mu = np.float32(plan.proximal_mu)
                step = functools.partial(opened.runner("train_proximal"), mu=mu, clip=self._clip)
            for _epoch in range(plan.local_epochs):
                order = np.argsort(order_bits.random_raw(count), kind="stable")
                for block, counts in batches.blocks(order):
                    losses = []
                    for x, y, w in block:
                        if stop():
                            raise TrainingStoppedError("training was stopped between two batches")
                        losses.append(float(step(x=x, y=y, w=w, lr=rate)["loss"]))
                    loss_sum += float(np.array(losses) @ counts)
                if not math.isfinite(loss_sum):
                    raise NotFiniteError(
                        f"the loss is {loss_sum} at a learning rate of {plan.learning_rate}"
                    )
            tensors = self._get(opened)
        return TrainResult(tensors, count, {"train_loss": loss_sum / (count * plan.local_epochs)})

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        """Mean loss on the hold-out; accuracy where outputs are right or wrong.

        Raises:
            As `train`.
        """
        examples = self._examples(current(self._data, self._holdout).holdout)
        count = len(examples[0])
        if count == 0:
            return EvalResult(0.0, 0)
        loss, right = 0.0, 0.0
        with self._pool.lent(self._artefact) as opened:
            self._put(opened, model.tensors)
            measure = opened.runner("evaluate")
            batches = _Batches(self._info, examples, self._info.batch)
            for block, _counts in batches.blocks(np.arange(count)):
                for x, y, w in block:
                    if stop():
                        raise TrainingStoppedError("evaluation was stopped between two batches")
                    found = measure(x=x, y=y, w=w)
                    loss += float(found["loss_sum"])
                    right += float(found["right_sum"])
        metrics = {} if self._info.loss == "squared" else {"accuracy": right / count}
        return EvalResult(loss / count, count, metrics)

    def _examples(self, arrays: Arrays) -> Arrays:
        """The arrays as they came; that they are such as the file takes is seen when gathered.

        Raises:
            LiteRTError: not x and y, or of other shapes or kinds.
        """
        info = self._info
        if not arrays:
            return (np.empty((0, *info.x_shape)), np.empty((0, *info.y_shape)))
        if len(arrays) != 2:  # noqa: PLR2004 - x and y
            raise LiteRTError(f"the data are {len(arrays)} arrays, not x and y")
        for name, array, shape, bound in (
            ("x", arrays[0], info.x_shape, info.x_values),
            ("y", arrays[1], info.y_shape, info.classes),
        ):
            if array.shape[1:] != shape:
                raise LiteRTError(
                    f"{name} is {list(array.shape)}: the file takes [n, {str(list(shape))[1:]}"
                )
            if array.dtype.kind not in ("iu" if bound else "fiub"):
                raise LiteRTError(
                    f"{name} is {array.dtype}: the file takes"
                    f" {f'whole numbers below {bound}' if bound else 'real numbers'}"
                )
        return arrays

    def _put(self, opened: "Opened", tensors: Tensors) -> None:
        """Set the parameters, each of exactly its shape and dtype: the interpreter does not look.

        Raises:
            SchemaMismatchError, NotFiniteError: as `Schema.check`.
        """
        self._schema.check(tensors)
        opened.runner("set_parameters")(
            **{spec.name: np.ascontiguousarray(tensors[spec.name]) for spec in self._schema.tensors}
        )

    def _get(self, opened: "Opened") -> Tensors:
        """The parameters, by name: what comes has no order."""
        got = opened.runner("get_parameters")()
        tensors = {spec.name: got[spec.name] for spec in self._schema.tensors}
        self._schema.check(tensors)
        return tensors


class _Batches:
    """Examples as the file takes them: gathered, checked, padded.

    Batches lie in buffers that are filled again and again: the interpreter copies what it is given.
    The padding is some example once more, and weighs nothing.

    Args:
        info: of the file.
        examples: x and y, of the right shapes, at least one of each.
        size: examples in a batch, at most the file's.
    """

    def __init__(self, info: ArtefactInfo, examples: Arrays, size: int) -> None:
        self._size = size
        count = len(examples[0])
        row = math.prod(info.x_shape) + math.prod(info.y_shape) + 1
        most = max(_BLOCK_BYTES // (4 * row * info.batch), 1)
        self._at_once = min(-(-count // size), most)
        self._index = np.zeros((self._at_once, info.batch), np.int64)
        self._x = _Buffer("x", examples[0], info.x_dtype, info.x_values, self._index.shape)
        part = info.loss == "sigmoid"
        self._y = _Buffer(
            "y", examples[1], info.y_dtype, info.classes, self._index.shape, is_part=part
        )
        whole = _weights(info.batch, size)
        self._whole = [(x, y, whole) for x, y in zip(self._x.array, self._y.array, strict=True)]

    def blocks(
        self, order: NDArray[np.int64]
    ) -> Iterator[tuple[Sequence[Batch], NDArray[np.float64]]]:
        """Batches in order, some at a time, and how many examples each has.

        Raises:
            LiteRTError: a value is not finite, or an id or a label is out of its range.
        """
        for start in range(0, len(order), self._at_once * self._size):
            rows = order[start : start + self._at_once * self._size]
            full, rest = divmod(len(rows), self._size)
            count = full + (rest > 0)
            index = self._index[:count]
            index[:full, : self._size] = rows[: len(rows) - rest].reshape(full, self._size)
            batches = self._whole[:count]
            counts = np.full(count, self._size, np.float64)
            if rest:
                index[full, :rest] = rows[len(rows) - rest :]
                x, y, whole = batches[full]
                batches[full] = (x, y, _weights(len(whole), rest))
                counts[full] = rest
            self._x.gather(index)
            self._y.gather(index)
            yield batches, counts


class _Buffer:
    """x or y of some batches, in the file's dtype.

    Args:
        name: x or y.
        examples: all of it.
        dtype: of the file.
        bound: of integers: 0 to one less; 0 for real numbers.
        shape: batches, and examples in a batch.
        is_part: real numbers are from 0 to 1, as the answers of a sigmoid are.
    """

    def __init__(
        self,
        name: str,
        examples: NDArray[Any],
        dtype: str,
        bound: int,
        shape: tuple[int, ...],
        *,
        is_part: bool = False,
    ) -> None:
        self._name = name
        self._examples = examples
        self._bound = bound
        self._is_part = is_part
        self._same = examples.dtype == np.dtype(dtype)
        self.array: NDArray[Any] = np.zeros((*shape, *examples.shape[1:]), dtype)

    def gather(self, index: NDArray[np.int64]) -> None:
        """Copy these examples, and look at the copy.

        Raises:
            LiteRTError: see `_Batches.blocks`.
        """
        into = self.array[: len(index)]
        found = into
        if self._same:
            # An index is one of an order of all examples, so that there is nothing to clip.
            self._examples.take(index, axis=0, out=into, mode="clip")
        else:
            found = self._examples.take(index, axis=0)
        if self._bound:
            least, most = int(found.min()), int(found.max())
            if least < 0 or most >= self._bound:
                raise LiteRTError(
                    f"{self._name} has {least} to {most}: the file takes 0 to {self._bound - 1}"
                )
        if not self._same:
            with np.errstate(over="ignore"):
                into[...] = found
        if not self._bound and not np.isfinite(into).all():
            raise LiteRTError(f"{self._name} has values that are not finite in {into.dtype}")
        if self._is_part and not 0.0 <= into.min() <= into.max() <= 1.0:
            raise LiteRTError(
                f"{self._name} has {into.min():g} to {into.max():g}: the file takes 0 to 1"
            )


def _weights(batch: int, count: int) -> NDArray[np.float32]:
    """1 for so many examples, 0 for the padding after them."""
    weights = np.zeros(batch, np.float32)
    weights[:count] = 1.0
    return weights
