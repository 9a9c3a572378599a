"""paho's client, as a link needs it: it sleeps, it guards its memory, it says what went wrong."""

import ssl
import threading
from socket import socket as Socket  # noqa: N812 - a class
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

from wire import limits

# How often paho looks whether a ping is due, with nothing to send or read; its own second costs an
# idle device more than all else. A ping may be late by half the keepalive.
PING_LOOK_S = 5.0
# A slow link, and a small processor on the other side; `stop` waits for no longer.
HANDSHAKE_S = 10.0
# What is read at once: a packet's length is known long before memory for it is asked for.
_READ_BYTES_MAX = 65_536


class GuardedClient(Client):
    """paho's client, for a broker that says anything at all and an owner who notices everything.

    Its thread sleeps until there is something to do. A packet larger than the link asked for is not
    read: paho itself would take a quarter of a gigabyte into memory. One that paho cannot make
    sense of ends the connection: paho itself would end its thread. Either way the link goes on as
    after any other loss. A handshake that fails leaves no socket behind.

    Attributes:
        tls_name: the broker's name, which its certificate has to be for.
        packet_bytes_max: the largest packet that is read.
        failure: why the last attempt to connect failed.
    """

    tls_name = ""
    packet_bytes_max = limits.PACKET_BYTES_MAX_DEFAULT
    failure: OSError | None = None

    def loop_forever(
        self,
        timeout: float = PING_LOOK_S,
        retry_first_connection: bool = False,  # noqa: FBT001, FBT002 - paho's own
    ) -> MQTTErrorCode:
        """As paho's; whoever publishes or disconnects still wakes it at once."""
        return super().loop_forever(timeout, retry_first_connection)

    def loop_stop(self) -> MQTTErrorCode:
        """As paho's, whose thread may end between the look at it and the wait for it."""
        thread = self._thread
        if thread is None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        self._thread_terminate = True
        if thread is not threading.current_thread():
            thread.join()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def reconnect(self) -> MQTTErrorCode:
        """Connect; what went wrong is kept for `on_connect_fail`."""
        try:
            return super().reconnect()
        except OSError as error:
            self.failure = error
            raise
        except ValueError as error:  # a name that no resolver or certificate can have
            self.failure = OSError(str(error))
            raise self.failure from error

    def _ssl_wrap_socket(self, tcp_sock: Socket) -> ssl.SSLSocket:
        context: Any = self._ssl_context
        tls: ssl.SSLSocket = context.wrap_socket(
            tcp_sock, server_hostname=self.tls_name, do_handshake_on_connect=False
        )
        try:
            tls.settimeout(HANDSHAKE_S)
            tls.do_handshake()
        except OSError:
            tls.close()
            raise
        return tls

    def _sock_recv(self, bufsize: int) -> bytes:
        # The length is on the wire for everything after it; the topic and header are within.
        if self._in_packet["remaining_length"] > self.packet_bytes_max:
            raise ConnectionAbortedError("a packet is larger than this link takes")
        return super()._sock_recv(min(bufsize, _READ_BYTES_MAX))

    def _packet_handle(self) -> MQTTErrorCode:
        try:
            return super()._packet_handle()
        except Exception:  # noqa: BLE001 - whatever paho raises on bytes that are no MQTT
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
