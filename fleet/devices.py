"""The devices of a fleet: who they are, what they are like, and the keys that a seed gives them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from coordinator import Coordinator, FederationConfig
from device_profiles import DeviceProfile, load_mix
from edge_sdk import DeviceInfo, ReleaseCheck
from edge_sdk.journal import Enrolment, Journal, MemoryJournal
from edge_sdk.models import MemoryShelf, ModelShelf
from edge_sdk.parts import PartStore
from edge_sdk.work import Work
from fleet.crypto import SeededSecrets
from fleet.emulated import EmulatedDevice, LinkT
from fleet.faults import Fault
from wire import Crypto, Manifest


def device_key(seed: int, number: int) -> bytes:
    """The private key of an emulated device."""
    return SeededSecrets(seed, f"device/{number}").token(32)


def device_seed(seed: int, number: int) -> int:
    """The seed of an emulated device, for whatever chance its trainer needs."""
    return int.from_bytes(SeededSecrets(seed, f"data/{number}").token(4), "little")


def profiles(config: FederationConfig, count: int, seed: int) -> list[DeviceProfile]:
    """The profile of each device."""
    return load_mix(config.fleet.mix).assign(count, seed)


def enrolments(
    coordinator: Coordinator, config: FederationConfig, count: int, seed: int, now_s: float
) -> list[Enrolment]:
    """Names without the ceremony of tokens: the fleet is on both sides of the table."""
    crypto = coordinator.crypto
    return [
        Enrolment(
            device=coordinator.admit(
                crypto.signer(device_key(seed, number)).public_key, profile.name, now_s
            ),
            federation=config.federation.name,
            coordinator_key=coordinator.public_key,
            broker="",
            ca="",
            certificate=b"",
        )
        for number, profile in enumerate(profiles(config, count, seed))
    ]


def make_devices(
    *,
    task: Any,
    manifest: Manifest,
    config: FederationConfig,
    seed: int,
    crypto: Crypto,
    enrolments: Sequence[Enrolment],
    faults: dict[int, Fault],
    make_link: Callable[[EmulatedDevice[LinkT]], LinkT],
    start_work: Callable[[EmulatedDevice[LinkT], Work], None],
    make_journal: Callable[[int], Journal] = lambda _number: MemoryJournal(),
    make_shelf: Callable[[int], ModelShelf] = lambda _number: MemoryShelf(),
    make_parts: Callable[[int], PartStore | None] = lambda _number: None,
    clock_of: Callable[[int], Callable[[], float]] = lambda _number: time.monotonic,
    check_of: Callable[[int], ReleaseCheck | None] = lambda _number: None,
) -> list[EmulatedDevice[LinkT]]:
    """The devices of a fleet, not yet connected."""
    count = len(enrolments)
    described = profiles(config, count, seed)
    return [
        EmulatedDevice(
            info=DeviceInfo(
                index=number,
                count=count,
                seed=device_seed(seed, number),
                profile=described[number],
                partition=config.fleet.partition,
            ),
            profile=described[number],
            task=task,
            manifest=manifest,
            enrolment=enrolment,
            signer=crypto.signer(device_key(seed, number)),
            crypto=crypto,
            journal=make_journal(number),
            shelf=make_shelf(number),
            check_in_s=config.fleet.check_in_s,
            make_link=make_link,
            start_work=start_work,
            clock=clock_of(number),
            fault=faults.get(number),
            parts=make_parts(number),
            check_release=check_of(number),
        )
        for number, enrolment in enumerate(enrolments)
    ]
