"""A PyTorch module as a trainer (extra `torch`, which is imported when a trainer is made).

What travels is the module's `state_dict`: `manifest_of` makes the task's manifest of it. Parameters
that need no gradient are frozen; statistics of batches and integer counters stay on the device, by
the rule in `wire.manifest` (FedBN, Li et al. 2021); names that are one tensor travel once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.examples import Arrays, Source, current
from edge_sdk.trainer import (
    EvalResult,
    Model,
    Stop,
    TaskError,
    TrainingStoppedError,
    TrainResult,
)
from wire import Manifest, Plan, Tensors
from wire.manifest import Part

if TYPE_CHECKING:
    import torch

_EVALUATE_BATCH: Final = 1_024
_MASK: Final = 2**64 - 1


def manifest_of(module: "torch.nn.Module", **about: Any) -> Manifest:
    """The manifest of a module: its state by name, in its order.

    Args:
        module: as the coordinator and every device make it: seed PyTorch before, or load a file.
        about: more for `Manifest`; `parts` goes before the rule.

    Raises:
        ManifestError: a tensor that potluck cannot carry.
    """
    parts: dict[str, Part] = {
        name: "frozen" for name, weight in module.named_parameters() if not weight.requires_grad
    }
    state = _own_state(module)
    given = about.pop("parts", {})
    parts = {name: part for name, part in parts.items() if name in state} | given
    return Manifest({name: _array(value) for name, value in state.items()}, parts=parts, **about)


class TorchTrainer:
    """A module that is trained on one device's data, by one thread of the processor.

    PyTorch's number of threads and its default random generator belong to the whole process: both
    are set while a batch of work goes on, and put back after it.

    Args:
        module: made as for `manifest_of`; its own state is overwritten by each model.
        loss: `loss(output, y)`, the mean over a batch.
        data: an `ExampleStore`; a function that returns `(train, holdout)`, each `(x, y)`; or
            `(x, y)`. Asked at each piece of work.
        holdout: `(x, y)` that is never trained on, instead of that of `data`.
        optimizer: `optimizer(parameters, lr=...)`, made anew each time; plain SGD by default. The
            plan has the rate.
        seed: of the device; with the plan's seed it fixes the order of examples and all chance in
            the module.
        threads: of the processor, for PyTorch's own operations.

    Raises:
        TaskError: PyTorch is not installed.
    """

    def __init__(
        self,
        module: "torch.nn.Module",
        loss: Callable[[Any, Any], Any],
        data: Source,
        *,
        holdout: Sequence[ArrayLike] | None = None,
        optimizer: Callable[..., Any] | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        self._torch = _import_torch()
        self._module = module
        self._loss = loss
        self._data = data
        self._holdout = holdout
        self._optimizer = optimizer or self._torch.optim.SGD
        self._seed = seed
        self._threads = threads

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """`plan.local_epochs` over the examples, with FedProx's term where the plan has one.

        A last batch of one example is joined to the one before, if the module normalizes batches.

        Raises:
            TrainingStoppedError: `stop()` said so between two batches.
        """
        examples = current(self._data, self._holdout).train
        count = len(examples[0]) if examples else 0
        if count == 0:
            return TrainResult({}, 0)
        seed = (plan.seed * 2_654_435_761 + self._seed) & _MASK
        order_bits = np.random.Philox(key=seed)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._alone(seed))
            self._load(model.tensors)
            self._module.train()
            weights = self._trained(stack, model)
            first = [weight.detach().clone() for weight in weights] if plan.proximal_mu else []
            optimizer = self._optimizer(weights, lr=plan.learning_rate)
            loss_sum = 0.0
            for _epoch in range(plan.local_epochs):
                order = np.argsort(order_bits.random_raw(count), kind="stable")
                for rows in self._batches(order, plan.batch):
                    if stop():
                        raise TrainingStoppedError("training was stopped between two batches")
                    optimizer.zero_grad()
                    loss = self._loss_of(examples, rows)
                    loss.backward()
                    for weight, start in zip(weights, first, strict=bool(first)):
                        if weight.grad is not None:  # FedProx, eq. 2
                            weight.grad.add_(weight.detach() - start, alpha=plan.proximal_mu)
                    optimizer.step()
                    loss_sum += float(loss.detach()) * len(rows)
            tensors = {
                name: np.array(_array(value), np.float32)
                for name, value in _own_state(self._module).items()
                if model.trains(name)
            }
        return TrainResult(tensors, count, {"train_loss": loss_sum / (count * plan.local_epochs)})

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        """Mean loss on the hold-out; accuracy where outputs are scores of classes."""
        examples = current(self._data, self._holdout).holdout
        count = len(examples[0]) if examples else 0
        if count == 0:
            return EvalResult(0.0, 0)
        loss, right, classifies = 0.0, 0.0, False
        with self._alone(self._seed & _MASK), self._torch.no_grad():
            self._load(model.tensors)
            self._module.eval()
            for start in range(0, count, _EVALUATE_BATCH):
                if stop():
                    raise TrainingStoppedError("evaluation was stopped between two batches")
                x, y = self._inputs(examples, slice(start, start + _EVALUATE_BATCH))
                output = self._module(x)
                loss += float(self._loss(output, y)) * len(y)
                classifies = output.ndim == y.ndim + 1 and not y.is_floating_point()
                if classifies:
                    right += float((output.argmax(dim=1) == y).float().mean()) * len(y)
        return EvalResult(loss / count, count, {"accuracy": right / count} if classifies else {})

    def _trained(self, stack: contextlib.ExitStack, model: Model) -> list[Any]:
        """The weights that training is to change; until it is over no other has a gradient."""
        weights = []
        for name, weight in self._module.named_parameters():
            if weight.requires_grad and model.trains(name):
                weights.append(weight)
            elif weight.requires_grad:
                weight.requires_grad_(requires_grad=False)
                stack.callback(weight.requires_grad_, requires_grad=True)
        return weights

    def _loss_of(self, examples: Arrays, rows: NDArray[np.int64]) -> Any:
        x, y = self._inputs(examples, rows)
        return self._loss(self._module(x), y)

    def _inputs(self, examples: Arrays, rows: Any) -> tuple[Any, Any]:
        x, y = (self._torch.from_numpy(np.ascontiguousarray(array[rows])) for array in examples)
        return x, y

    def _batches(self, order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        starts = list(range(0, len(order), size))
        normalized = self._torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - its only common name
        lone = len(order) - starts[-1] == 1 and len(starts) > 1
        if lone and any(isinstance(part, normalized) for part in self._module.modules()):
            starts.pop()
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            yield order[start:end]

    def _load(self, tensors: Tensors) -> None:
        """Copy a model into the module, in the module's own dtypes."""
        with self._torch.no_grad():
            for name, value in _own_state(self._module).items():
                value.copy_(self._torch.from_numpy(np.array(tensors[name], np.float32)))

    @contextlib.contextmanager
    def _alone(self, seed: int) -> Iterator[None]:
        """This trainer's threads and chance; then the process has its own again."""
        threads = self._torch.get_num_threads()
        with self._torch.random.fork_rng(devices=[]):
            self._torch.set_num_threads(self._threads)
            self._torch.manual_seed(seed)
            try:
                yield
            finally:
                self._torch.set_num_threads(threads)


def _own_state(module: "torch.nn.Module") -> dict[str, Any]:
    """The state by name; of names that are one tensor (tied weights) the first."""
    state: dict[str, Any] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in module.state_dict().items():
        place = (value.data_ptr(), tuple(value.shape))
        if value.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = value
    return state


def _array(value: Any) -> NDArray[Any]:
    """As NumPy has it; bfloat16, which it does not have, as float32."""
    plain = value.detach().cpu()
    return np.asarray((plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy())


def _import_torch() -> Any:
    try:
        import torch  # noqa: PLC0415 - an extra, loaded when it is used
    except ImportError as error:
        raise TaskError("PyTorch is not installed: pip install 'potluck[torch]'") from error
    return torch
