"""All links and timers of a fleet in one thread, training in a few others.

A selector watches every socket, a heap every timer; a device costs memory and no thread. What
worker threads finish comes back through a queue and one byte on a socket pair.
"""

import contextlib
import heapq
import math
import queue
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

from edge_sdk.work import Work, WorkDone, round_of
from fleet.emulated import EmulatedDevice
from wire import MqttLink

LiveDevice: TypeAlias = EmulatedDevice[MqttLink]

WORKERS: Final = 2
RECONNECT_S: Final = 0.5
MISC_EVERY_S: Final = 1.0
_SELECT_S_MAX: Final = 0.2
_CONNECT_BURST: Final = 50


class FleetLoop:
    """Runs emulated devices until it is stopped."""

    def __init__(self) -> None:
        self.devices: Sequence[LiveDevice] = ()
        self.error: BaseException | None = None
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, Any] = {}
        self._timers: list[tuple[float, int]] = []
        self._due_s: dict[int, float] = {}
        self._misc_at_s = 0.0
        self._connect_at_s: dict[int, float] = {}
        self._done: queue.SimpleQueue[tuple[LiveDevice, Work, WorkDone]] = queue.SimpleQueue()
        self._bell, self._ear = socket.socketpair()
        self._ear.settimeout(0.0)
        self._bell.settimeout(0.0)
        self._selector.register(self._ear, selectors.EVENT_READ, None)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="potluck-training")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="potluck-fleet", daemon=True)

    def start(self, devices: Sequence[LiveDevice]) -> None:
        """Connect every device, and go on from there."""
        self.devices = devices
        self._thread.start()

    def stop(self) -> None:
        """Disconnect every device and end."""
        self._stopping.set()
        self._ring()
        if self._thread.ident is not None:
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._selector.close()
        self._bell.close()
        self._ear.close()

    def start_work(self, device: LiveDevice, work: Work) -> None:
        """Train on a worker; called on the loop."""
        device.strike(round_of(work))
        self._pool.submit(self._train, device, work)

    # -- other threads -----------------------------------------------------------------------

    def _train(self, device: LiveDevice, work: Work) -> None:
        self._done.put((device, work, work.run()))
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe rings already
            self._bell.send(b"!")

    # -- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            now_s = time.monotonic()
            for number, device in enumerate(self.devices):
                device.open_gate()
                self._connect_at_s[number] = now_s + number / 2_000.0
            while not self._stopping.is_set():
                self._turn()
            for device in self.devices:
                device.link.stop()
        except BaseException as error:  # noqa: BLE001 - the thread that waits must hear of it
            self.error = error

    def _turn(self) -> None:
        now_s = time.monotonic()
        self._connect_due(now_s)
        self._wake_due(now_s)
        for key, mask in self._selector.select(self._patience_s(now_s)):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._ear.recv(4_096)
                self._finish_work()
                continue
            link = self.devices[key.data].link
            if mask & selectors.EVENT_READ:
                link.read()
            if mask & selectors.EVENT_WRITE and link.socket() is not None:
                link.write()
            self._after(key.data)

    def _patience_s(self, now_s: float) -> float:
        due_s = self._timers[0][0] if self._timers else now_s + _SELECT_S_MAX
        if self._connect_at_s:
            due_s = min(due_s, *self._connect_at_s.values())
        return min(max(due_s - now_s, 0.0), _SELECT_S_MAX)

    def _connect_due(self, now_s: float) -> None:
        due = [number for number, at_s in self._connect_at_s.items() if at_s <= now_s]
        for number in due[:_CONNECT_BURST]:
            del self._connect_at_s[number]
            device = self.devices[number]
            if device.gone:
                continue
            try:
                device.link.connect()
            except OSError:
                self._connect_at_s[number] = now_s + RECONNECT_S
                continue
            self._after(number)

    def _wake_due(self, now_s: float) -> None:
        while self._timers and self._timers[0][0] <= now_s:
            at_s, number = heapq.heappop(self._timers)
            if self._due_s.get(number) == at_s:
                del self._due_s[number]
            if not self.devices[number].gone:
                self.devices[number].driver.wake(now_s)
                self._after(number)
        if now_s < self._misc_at_s:
            return
        self._misc_at_s = now_s + MISC_EVERY_S
        for number, device in enumerate(self.devices):
            if device.gate_opens_at_s is not None and device.gate_opens_at_s <= now_s:
                device.open_gate()
                self._after(number)
            if device.link.socket() is not None:
                device.link.misc()

    def _finish_work(self) -> None:
        while not self._done.empty():
            device, work, event = self._done.get()
            device.count_training(work)
            if not device.gone:
                device.work_done(work, event)
                self._after(device.info.index)

    def _after(self, number: int) -> None:
        """Whatever a device did: send what waits, watch its socket, remember its next timer."""
        device = self.devices[number]
        link = device.link
        device.send_more()
        if link.socket() is not None and link.wants_write():
            link.write()
        sock = link.socket()
        watched = self._watched.get(number)
        if watched is not sock:
            if watched is not None:
                self._selector.unregister(watched)
                del self._watched[number]
            if sock is not None:
                self._selector.register(sock, selectors.EVENT_READ, number)
                self._watched[number] = sock
        if sock is None:
            if not device.gone and number not in self._connect_at_s:
                again_s = time.monotonic() + RECONNECT_S
                self._connect_at_s[number] = max(again_s, device.away_until_s or 0.0)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.wants_write() else 0)
        if self._selector.get_key(sock).events != wanted:
            self._selector.modify(sock, wanted, number)
        due_s = device.driver.next_wake_s
        if due_s is not None and due_s < self._due_s.get(number, math.inf):
            # Only the earliest has an entry; one that is put off finds nothing due and asks again.
            self._due_s[number] = due_s
            heapq.heappush(self._timers, (due_s, number))
