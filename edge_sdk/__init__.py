"""edge_sdk: the device. It trains on the device's own data when the owner's rules allow it.

`Device` is what an app embeds. Inside, a sans-IO session (`session`) decides, a driver (`driver`)
executes, a journal keeps what must not be lost. Only quantized updates leave the device; nothing
heavier than the base install is imported. Trainers and the store of examples are loaded when they
are named, and what runs a device when it is started.
"""

from typing import TYPE_CHECKING, Any

from edge_sdk.consent import ConsentError
from edge_sdk.device import Device, DeviceError, NoModelYetError
from edge_sdk.enrolment import EnrolmentError
from edge_sdk.journal import JournalError
from edge_sdk.policy import Conditions, Policy, PolicyError
from edge_sdk.reasons import Reason
from edge_sdk.status import DeviceStatus, read_status
from edge_sdk.trainer import (
    DeviceInfo,
    EvalResult,
    Model,
    Task,
    TaskError,
    Trainer,
    TrainerTask,
    TrainingStoppedError,
    TrainResult,
    load_task,
)

if TYPE_CHECKING:
    from edge_sdk.callable_trainer import CallableTrainer, FreshTrainer
    from edge_sdk.driver import DeviceDriver
    from edge_sdk.example_store import ExampleStore, ExampleStoreError
    from edge_sdk.examples import ExampleError, ExampleStats, Split
    from edge_sdk.fine_tuning import FineTuned, FineTuningError
    from edge_sdk.litert_errors import ArtefactRejectedError, LiteRTError
    from edge_sdk.litert_trainer import LiteRTTrainer
    from edge_sdk.numpy_trainer import NumpyTrainer
    from edge_sdk.release_check import ReleaseCheck, Veto, no_worse_than
    from edge_sdk.torch_trainer import TorchTrainer, manifest_of

__all__ = [
    "ArtefactRejectedError",
    "CallableTrainer",
    "Conditions",
    "ConsentError",
    "Device",
    "DeviceDriver",
    "DeviceError",
    "DeviceInfo",
    "DeviceStatus",
    "EnrolmentError",
    "EvalResult",
    "ExampleError",
    "ExampleStats",
    "ExampleStore",
    "ExampleStoreError",
    "FineTuned",
    "FineTuningError",
    "FreshTrainer",
    "JournalError",
    "LiteRTError",
    "LiteRTTrainer",
    "Model",
    "NoModelYetError",
    "NumpyTrainer",
    "Policy",
    "PolicyError",
    "Reason",
    "ReleaseCheck",
    "Split",
    "Task",
    "TaskError",
    "TorchTrainer",
    "TrainResult",
    "Trainer",
    "TrainerTask",
    "TrainingStoppedError",
    "Veto",
    "load_task",
    "manifest_of",
    "no_worse_than",
    "read_status",
]

# By the module that has them.
_LATER = {
    "ArtefactRejectedError": "litert_errors",
    "CallableTrainer": "callable_trainer",
    "DeviceDriver": "driver",
    "ExampleError": "examples",
    "ExampleStats": "examples",
    "ExampleStore": "example_store",
    "ExampleStoreError": "example_store",
    "FineTuned": "fine_tuning",
    "FineTuningError": "fine_tuning",
    "FreshTrainer": "callable_trainer",
    "LiteRTError": "litert_errors",
    "LiteRTTrainer": "litert_trainer",
    "NumpyTrainer": "numpy_trainer",
    "ReleaseCheck": "release_check",
    "Split": "examples",
    "TorchTrainer": "torch_trainer",
    "Veto": "release_check",
    "manifest_of": "torch_trainer",
    "no_worse_than": "release_check",
}


def __getattr__(name: str) -> Any:
    """Load a trainer, or the store of examples, when it is named first.

    Raises:
        AttributeError: no such name.
    """
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - as what it loads

    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
