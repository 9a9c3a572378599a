"""Putting a device together that is to run: journal, driver, gatekeeper, link.

Loaded when a device starts or fine-tunes: an app that only reads its model needs none of it.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_sdk._gatekeeper import Gatekeeper
from edge_sdk._running import Running
from edge_sdk._tuning import fine_tune_alone
from edge_sdk.consent import MODELS_DIR
from edge_sdk.described import DescribedDriver
from edge_sdk.description import FileDescriptions
from edge_sdk.driver import DeviceDriver
from edge_sdk.energy import energy_of
from edge_sdk.enrolment import tls_files
from edge_sdk.fine_tuning import FineTuned, FineTuneWork, FineTuningError
from edge_sdk.journal import Enrolment, SqliteJournal
from edge_sdk.models import FileShelf
from edge_sdk.newcomer import Newcomer
from edge_sdk.parts import PartFiles
from edge_sdk.policy import Conditions, Policy
from edge_sdk.release_check import ReleaseCheck
from edge_sdk.trainer import DeviceInfo, Model, Stop
from wire import BrokerAddress, Crypto, Manifest, MqttLink, Plan, Report
from wire.lock import InstanceLock

# In the directory of models: what has arrived of a description.
_PARTS: Final = "description"


@dataclass(frozen=True)
class Kit:
    """What a device is made of: see `Device`, whose arguments most of it was.

    `key_seed` makes the device's key when it has none, and `left_over` is a thread of before that
    may still train.
    """

    task: Any
    state_dir: Path
    policy: Policy
    conditions: Callable[[], Conditions]
    observe: Callable[[Report], None]
    device_class: str
    info: DeviceInfo
    broker: str | None
    check_release: ReleaseCheck | None
    crypto: Crypto
    key_seed: bytes
    left_over: threading.Thread | None = None

    @property
    def models(self) -> Path:
        """The directory of models."""
        return self.state_dir / MODELS_DIR


def assemble(
    kit: Kit,
    manifest: Manifest | None,
    enrolment: Enrolment,
    lock: InstanceLock,
    journal: SqliteJournal,
) -> Running:
    """A device that is ready to run; without a manifest it fetches one first."""
    running = Running(
        lock=lock,
        journal=journal,
        conditions=kit.conditions,
        policy=kit.policy,
        energy=energy_of(kit.device_class),
        observe=kit.observe,
        left_over=kit.left_over,
    )
    signer = kit.crypto.signer(journal.identity_key(kit.key_seed))

    def make_driver(manifest: Manifest, description_digest: bytes = b"") -> DeviceDriver:
        info = dataclasses.replace(kit.info, manifest=manifest)
        return DeviceDriver(
            manifest=manifest,
            make_trainer=lambda: kit.task.trainer(info),
            journal=journal,
            shelf=FileShelf(kit.models, manifest.schema),
            enrolment=enrolment,
            signer=signer,
            crypto=kit.crypto,
            publish=running.publish,
            start_work=running.start_work,
            observe=kit.observe,
            device_class=kit.device_class,
            means=running.gatekeeper.means,
            parts=PartFiles(kit.models),
            room=running.room,
            may_send=running.gatekeeper.may_send,
            check_release=kit.check_release,
            check_at_once=kit.policy.check_releases_at_once,
            description_digest=description_digest,
        )

    def make_newcomer(have_digest: bytes) -> Newcomer:
        return Newcomer(
            have_digest=have_digest,
            journal=journal,
            descriptions=FileDescriptions(kit.models),
            enrolment=enrolment,
            signer=signer,
            crypto=kit.crypto,
            publish=running.publish,
            observe=kit.observe,
            means=running.gatekeeper.means,
            parts=PartFiles(kit.models / _PARTS),
            may_send=running.gatekeeper.may_send,
        )

    if manifest is not None:
        running.driver = make_driver(manifest)
    else:
        running.driver = DescribedDriver(
            journal=journal,
            descriptions=FileDescriptions(kit.models),
            make_driver=make_driver,
            make_newcomer=make_newcomer,
        )
    address = BrokerAddress.parse(kit.broker or enrolment.broker)
    running.link = MqttLink(
        address,
        enrolment.device,
        subscriptions=running.driver.subscriptions,
        on_message=running.hear,
        on_up=running.link_up,
        on_down=running.link_down,
        will=running.driver.will,
        tls=tls_files(address, enrolment.ca, kit.state_dir),
        on_taken=running.taken,
    )
    return running


def fine_tune_here(
    kit: Kit, plan: Plan, manifest: Manifest, model: Model, *, anyway: bool, stop: Stop
) -> FineTuned | FineTuningError:
    """Fine-tune on the caller's thread, while nothing else runs.

    Raises:
        AlreadyRunningError: another process runs this state directory.
    """
    kit.state_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(InstanceLock(kit.state_dir).release)
        journal = SqliteJournal(kit.state_dir)
        stack.callback(journal.close)
        rules = Gatekeeper(
            policy=kit.policy,
            conditions=kit.conditions,
            journal=journal,
            energy=energy_of(kit.device_class),
            traffic=lambda: (0, 0),
        )
        info = dataclasses.replace(kit.info, manifest=manifest)
        work = FineTuneWork(plan, manifest, model, lambda: kit.task.trainer(info), anyway)
        return fine_tune_alone(work, rules, FileShelf(kit.models, manifest.schema), stop)
