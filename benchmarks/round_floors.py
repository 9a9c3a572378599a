"""What a round cannot go below on a machine: its sum in plain NumPy, its bytes through a broker."""

import queue
import time
from typing import Final

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from coordinator import EmbeddedBroker
from wire import BrokerAddress, limits

_CHUNK_BYTES: Final = limits.PACKET_BYTES_MAX_DEFAULT - limits.PACKET_OVERHEAD_BYTES
_TOPIC: Final = "potluck/bench"
_WAIT_S: Final = 60.0
_AHEAD: Final = 64


def sum_s(updates: int, parameters: int) -> float:
    """Seconds to add `updates` decoded float32 updates, one after the other, and divide."""
    update = np.full(parameters, 0.5, np.float32)
    total = np.zeros(parameters, np.float32)
    began_s = time.perf_counter()
    for _ in range(updates):
        np.add(total, update, out=total)
    np.divide(total, np.float32(updates), out=total)
    return time.perf_counter() - began_s


def wire_s(payload_bytes: int) -> float:
    """Seconds to publish so many bytes at QoS 1 in chunks, and receive them, with plain paho."""
    chunks = max(-(-payload_bytes // _CHUNK_BYTES), 1)
    chunk = bytes(min(payload_bytes, _CHUNK_BYTES))
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()
    ready: queue.SimpleQueue[str] = queue.SimpleQueue()

    def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        heard.put(len(message.payload))

    with EmbeddedBroker() as broker:
        address = BrokerAddress.parse(broker.url)
        clients = [
            Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
            for _ in range(2)
        ]
        publisher, subscriber = clients
        subscriber.on_message = on_message
        subscriber.on_subscribe = lambda *_: ready.put("")
        try:
            for client in clients:
                client.connect(address.host, address.port)
                client.loop_start()
            subscriber.subscribe(_TOPIC, qos=1)
            ready.get(timeout=_WAIT_S)
            began_s = time.perf_counter()
            for number in range(chunks):
                if number >= _AHEAD:  # a broker drops what passes its queue
                    heard.get(timeout=_WAIT_S)
                publisher.publish(_TOPIC, chunk, qos=1)
            for _ in range(min(chunks, _AHEAD)):
                heard.get(timeout=_WAIT_S)
            return time.perf_counter() - began_s
        finally:
            for client in clients:
                client.disconnect()
                client.loop_stop()
