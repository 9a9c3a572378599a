"""The one plug for user code: a trainer is handed a model and a plan, and hands back a model.

A task is any object with `model() -> Manifest`, `trainer(device) -> Trainer` and, if there is test
data in one place, `test() -> Trainer`. `trainer` is called where the data is, with a `DeviceInfo`.
On a device `model` may be absent or return None: then the model comes from the coordinator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wire import Manifest, Plan, Tensors
from wire.errors import PotluckError

if TYPE_CHECKING:
    from device_profiles import DeviceProfile
    from wire import Artefact

Stop = Callable[[], bool]


class TrainingStoppedError(PotluckError):
    """`stop()` said so; nothing of the work is wanted."""


@dataclass(frozen=True)
class DeviceInfo:
    """Which device a trainer is for.

    An emulated device is number `index` of `count`, and `partition` says how a task that splits one
    data set should do it; a real device is alone, and its data is its own. `seed` is the device's,
    for whatever chance its trainer needs. `manifest` is what `task.model()` returned, or what the
    coordinator has sent where the task has no model: a trainer that needs the first tensors, or the
    artefact before there is a version to train, has them from there.
    """

    index: int = 0
    count: int = 1
    seed: int = 0
    profile: "DeviceProfile | None" = None
    partition: str = "iid"
    manifest: Manifest | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Model:
    """A version of the model: all its tensors.

    A trainer gets fresh arrays that it may write to, an app read-only ones.

    `path` is the `.npz` of the tensors that travel, where there is one. `trainable` are the names
    that training is to change, None for all: a trainer that leaves the others as they are saves
    time; of what others return, those are not used.
    """

    version: int
    tensors: Tensors
    path: Path | None = None
    artefact: "Artefact | None" = None
    trainable: tuple[str, ...] | None = None

    def trains(self, name: str) -> bool:
        """Whether training is to change this tensor."""
        return self.trainable is None or name in self.trainable


def read_only(tensors: Tensors) -> Tensors:
    """The same arrays, not to be written to: what an app sees is also what training starts from."""
    views: Tensors = {}
    for name, array in tensors.items():
        views[name] = array.view()
        views[name].flags.writeable = False
    return views


@dataclass(frozen=True)
class TrainResult:
    """What training made: the new tensors (all or only those changed), and from how much.

    `metrics` are figures about this device's training; those that are not finite are dropped.
    """

    tensors: Tensors
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """Mean loss over a hold-out, and more: `accuracy` where it means something.

    `num_examples` is 0 when there is no hold-out.
    """

    loss: float
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer(Protocol):
    """Bound to one device's data. Called on one thread at a time, never on the app's own.

    Both methods look at `stop()` between batches and raise `TrainingStoppedError` when it is true.
    """

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """Train as the plan says, starting from the model."""
        ...

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:
        """Measure the model on data that is never trained on."""
        ...


class TrainerTask(Protocol):
    """A task as a device needs it: without a `model` its model comes from the coordinator."""

    def trainer(self, device: DeviceInfo) -> Trainer:
        """A trainer that is bound to this device's data."""
        ...


class Task(TrainerTask, Protocol):
    """What `task = "module:object"` names."""

    def model(self) -> Manifest:
        """The model's tensors; the same on every device and the coordinator."""
        ...


class TaskError(PotluckError):
    """A task cannot be loaded or is not one; the text says what is missing."""


def load_task(name: str, *, beside: Path | None = None, needs_model: bool = True) -> Any:
    """Import `module:object`, also from the current directory and from `beside`.

    Args:
        name: of the task.
        beside: another directory to look in.
        needs_model: whether one without `model` is none; on a device it is one.

    Raises:
        TaskError: no such module or object, or one without `model` or `trainer`.
    """
    import importlib  # noqa: PLC0415 - an app that hands over its task never needs it
    import sys  # noqa: PLC0415 - as above

    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise TaskError(f"task {name!r}: write it as module:object, for instance my_app.task:task")
    for place in (beside, Path.cwd()):
        if place is not None and str(place.resolve()) not in sys.path:
            sys.path.insert(0, str(place.resolve()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"task {name!r}: {error}; run in the directory of {module_name.partition('.')[0]},"
            " or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"task {name!r}: importing it raised {type(error).__name__}: {error}"
        ) from error
    task = getattr(module, attribute, None)
    parts = ("model", "trainer") if needs_model else ("trainer",)
    missing = [part for part in parts if not callable(getattr(task, part, None))]
    if missing:
        raise TaskError(f"task {name!r}: has no {' and no '.join(f'{m}()' for m in missing)}")
    return task
