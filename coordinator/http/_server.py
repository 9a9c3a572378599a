"""The server: uvicorn on a thread of its own, on a socket of ours, with bounds that it lacks.

The coordinator's loop never waits for it. What goes the other way is a call that waits its turn
(`coordinator.calls`). Signals stay the process's own.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.gateway import Gateway
from coordinator.http._app import make_app
from coordinator.http._desk import Desk
from coordinator.http._guard import HEADER_BYTES_MAX
from coordinator.identity import http_token
from wire import PotluckError, Report, SystemSecrets

# Connections at a time: they share the process's files with the store and the link.
CONNECTIONS_MAX: Final = 128
# How long a connection may be without a whole request: as nginx' client_header_timeout, halved.
REQUEST_S_MAX: Final = 30.0
KEEP_ALIVE_S: Final = 5
THREADS_MAX: Final = 8
_START_S_MAX: Final = 10.0
_STOP_S_MAX: Final = 3.0
_PORT_MAX: Final = 65_535


class HttpServerError(PotluckError):
    """The API cannot be served there; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where to listen; port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "HttpAddress":
        """From HOST:PORT.

        Raises:
            HttpServerError: it is not one.
        """
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        bracketed = host != bare
        good = colon and bare and port.isascii() and port.isdecimal() and len(port) < 6  # noqa: PLR2004 - 65535
        if not good or int(port) > _PORT_MAX or (":" in bare) != bracketed:
            raise HttpServerError(f"--http {text!r}: write HOST:PORT, as in 127.0.0.1:8080")
        return cls(bare, int(port))


class _Protocol(H11Protocol):
    """uvicorn's, which waits without end for a first request and takes any number of clients."""

    _since_s = 0.0
    _patience: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        """A client is there; where there are too many, who has waited longest makes room."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        if len(self.connections) > CONNECTIONS_MAX:
            idle = [other for other in self.connections if _is_idle(other)]
            oldest = min(idle, key=lambda other: getattr(other, "_since_s", 0.0))
            oldest.transport.abort()
        self._expect_request()

    def _expect_request(self) -> None:
        self._patience = self.loop.call_later(REQUEST_S_MAX, self._give_up)

    def _give_up(self) -> None:
        if _is_idle(self):
            self.transport.abort()
        else:
            self._expect_request()  # an answer is under way, which has bounds of its own

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._patience.cancel()
        super().connection_lost(exc)


def _is_idle(protocol: Any) -> bool:
    """Whether no whole request of a connection is being answered."""
    return protocol.cycle is None or protocol.cycle.response_complete


class HttpServer:
    """The API of one coordinator, from construction to `stop`.

    Args:
        desk: the coordinator.
        address: where to listen.
        token: what writes have to show.

    Attributes:
        url: where it is.
        exposed: whether others than this machine reach it.

    Raises:
        HttpServerError: it cannot listen there.
    """

    def __init__(self, desk: Desk, address: HttpAddress, token: str) -> None:
        self._socket = _listen(address)
        host, port = self._socket.getsockname()[:2]
        ip = ipaddress.ip_address(host.partition("%")[0])
        self.exposed = not ip.is_loopback
        shown = f"[{host}]" if ip.version == 6 else host  # noqa: PLR2004 - IPv6
        self.url = f"http://{shown}:{port}"
        hosts = None if self.exposed else frozenset(
            {"127.0.0.1", "[::1]", "localhost", shown, address.host.lower()}
        )  # fmt: skip
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(desk, token, hosts=hosts),
                http=_Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._up = threading.Event()
        self._thread.start()
        if not self._up.wait(_START_S_MAX):
            raise HttpServerError(f"--http: nothing answers at {self.url}")

    def _run(self) -> None:
        async def serve() -> None:
            anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS_MAX
            asyncio.get_running_loop().call_soon(self._up.set)
            await self._server.serve(sockets=[self._socket])

        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(serve())

    def stop(self) -> None:
        """Answer what is under way, for a moment, and end."""
        self._server.should_exit = True
        self._thread.join(_STOP_S_MAX)
        self._socket.close()


def serve(
    gateway: Gateway, address: HttpAddress, state_dir: Path, observe: Callable[[Report], None]
) -> HttpServer:
    """Serve a gateway that has not started yet; stop it before the gateway.

    Raises:
        HttpServerError: it cannot listen there.
        StoreError: the token's file cannot be used.
    """
    token = http_token(state_dir, SystemSecrets())
    desk = Desk(
        state_dir=state_dir,
        config=gateway.config,
        public_key=gateway.coordinator.public_key,
        broker=gateway.url,
        status=lambda: gateway.status,
        calls=gateway.open_calls(),
        coordinator=gateway.coordinator,
    )
    server = HttpServer(desk, address, token)
    observe(Report("http", server.url))
    if server.exposed:
        observe(
            Report(
                "http_exposed",
                "others than this machine can read it, and see tokens on their way: there is no"
                " TLS; listen on 127.0.0.1 behind a proxy that has it",
            )
        )
    return server


def _listen(address: HttpAddress) -> socket.socket:
    where = f"{address.host}:{address.port}"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HttpServerError(f"--http {where}: {error.strerror or error}") from error
    try:
        if os.name == "posix":  # elsewhere it lets two processes listen on one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(target)
        listening.listen(CONNECTIONS_MAX)
    except OSError as error:
        listening.close()
        raise HttpServerError(
            f"--http {where}: {error.strerror or error}; choose another port, or 0 for a free one"
        ) from error
    return listening
