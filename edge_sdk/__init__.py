"""edge_sdk: the device. It trains on the device's own data when the owner's rules allow it.

`Device` is what an app embeds. Inside, a sans-IO session (`session`) decides, a driver (`driver`)
executes, a journal keeps what must not be lost. Only quantized updates leave the device; nothing
heavier than the base install is imported.
"""

from edge_sdk.callable_trainer import CallableTrainer, FreshTrainer
from edge_sdk.device import Device, DeviceError, DeviceStatus, NoModelYetError, read_status
from edge_sdk.driver import DeviceDriver
from edge_sdk.enrolment import EnrolmentError
from edge_sdk.example_store import ExampleStore, ExampleStoreError
from edge_sdk.examples import ExampleError, ExampleStats, Split
from edge_sdk.journal import JournalError
from edge_sdk.numpy_trainer import NumpyTrainer
from edge_sdk.policy import Conditions, Policy, PolicyError
from edge_sdk.reasons import Reason
from edge_sdk.torch_trainer import TorchTrainer, manifest_of
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

__all__ = [
    "CallableTrainer",
    "Conditions",
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
    "FreshTrainer",
    "JournalError",
    "Model",
    "NoModelYetError",
    "NumpyTrainer",
    "Policy",
    "PolicyError",
    "Reason",
    "Split",
    "Task",
    "TaskError",
    "TorchTrainer",
    "TrainResult",
    "Trainer",
    "TrainerTask",
    "TrainingStoppedError",
    "load_task",
    "manifest_of",
    "read_status",
]
