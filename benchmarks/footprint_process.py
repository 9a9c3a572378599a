"""A federation of one device process, for `potluck bench footprint`: broker, coordinator, device.

The device is `footprint_device.py` in a process of its own, which says what it spends; broker and
coordinator are real ones in theirs.
"""

import contextlib
import datetime as dt
import ipaddress
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from benchmarks.counting_relay import HOST, Relay
from benchmarks.gateway_process import GatewayProcess, RoundBenchError, environment
from coordinator import STORE_FILE, EmbeddedBroker, Store, load_identity, make_tokens, write_tokens
from coordinator.broker import free_port
from wire import Ed25519, SystemSecrets

_SCRIPT: Final = Path(__file__).parent / "footprint_device.py"
_END_S: Final = 20.0
PATIENCE_S: Final = 120.0


class DeviceProcess:
    """The device's process.

    Args:
        task: an object of `footprint_device`.
        state_dir: the device's.
        tokens: to enrol with; None when it is enrolled.
        options: more of its command line.
    """

    def __init__(
        self, task: str, state_dir: Path, tokens: Path | None, options: Sequence[str] = ()
    ) -> None:
        self.said: list[dict[str, Any]] = []
        self._came = threading.Condition()
        self._errors = state_dir.with_suffix(".log")
        command = [sys.executable, str(_SCRIPT), task, str(state_dir), *options]
        with self._errors.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own words
                [*command, *([] if tokens is None else ["--tokens", str(tokens)])],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            with self._came, contextlib.suppress(json.JSONDecodeError):
                self.said.append(json.loads(line))
                self._came.notify_all()
        with self._came:
            self._came.notify_all()

    def events(self, what: str) -> list[dict[str, Any]]:
        """What it has said of a kind."""
        with self._came:
            return [said for said in self.said if said["event"] == what]

    def wait_for(self, what: str, count: int = 1, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The `count`th report of a kind.

        Raises:
            RoundBenchError: it did not come, or the process ended.
        """
        until_s = time.monotonic() + patience_s
        with self._came:
            while True:
                found = [said for said in self.said if said["event"] == what]
                if len(found) >= count:
                    return found[count - 1]
                if self.process.poll() is not None or time.monotonic() > until_s:
                    raise RoundBenchError(self._complaint(what))
                self._came.wait(0.5)

    def _complaint(self, what: str) -> str:
        words = self._errors.read_text(errors="replace").strip().splitlines()
        last = words[-1] if words else str(self.said[-1:])
        return f"the device did not say {what}: {last}"

    def spent(self) -> dict[str, float]:
        """What it has spent until now: `cpu_s`, `trainer_s` and `naps`."""
        count = len(self.events("spent")) + 1
        if self.process.stdin is not None:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        return self.wait_for("spent", count)

    def kill(self) -> None:
        """SIGKILL: no moment to tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in good order, or by force if that takes too long."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class TlsBroker(EmbeddedBroker):
    """Mosquitto with a second listener that speaks TLS, for the device.

    Args:
        directory: where everything goes.
        certificate: the server's, and its key, PEM files.
    """

    def __init__(self, directory: Path, certificate: Path, key: Path) -> None:
        super().__init__(kind="mosquitto", state_dir=directory)
        self.tls_port = free_port()
        self._files = (certificate, key)

    def _config(self, port: int) -> str:
        certificate, key = self._files
        lines = [f"listener {self.tls_port} {HOST}", f"certfile {certificate}", f"keyfile {key}"]
        return super()._config(port) + "\n".join(lines) + "\n"


def server_certificate(directory: Path) -> tuple[str, Path, Path]:
    """A CA that lasts a day and a certificate of 127.0.0.1: the CA's PEM text, two files."""
    from cryptography import x509  # noqa: PLC0415 - for TLS alone
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = dt.datetime.now(dt.UTC)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(text: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(text))
            .issuer_name(name("potluck bench CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    own = x509.BasicConstraints(ca=True, path_length=0)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address(HOST))])
    ca = certificate("potluck bench CA", ca_key).add_extension(own, critical=True)
    server = certificate("broker", server_key).add_extension(host, critical=False)
    paths = (directory / "server.pem", directory / "server.key")
    pem = serialization.Encoding.PEM
    paths[0].write_bytes(server.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    paths[1].write_bytes(
        server_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return ca.sign(ca_key, hashes.SHA256()).public_bytes(pem).decode(), *paths


@dataclass(frozen=True)
class Federation:
    """A coordinator that runs, the way to its broker, and what one device needs to join."""

    gateway: GatewayProcess
    relay: Relay
    directory: Path
    tokens: Path

    def device(self, task: str, *options: str) -> DeviceProcess:
        """The device's process; it enrols when it is new, and ends with its `with` block."""
        state_dir = self.directory / "device"
        tokens = None if state_dir.exists() else self.tokens
        return DeviceProcess(task, state_dir, tokens, options)


@contextlib.contextmanager
def federation(toml: str, *, tls: bool = False) -> Iterator[Federation]:
    """A broker, a coordinator, and a relay on the device's way to the broker.

    Args:
        toml: the federation file.
        tls: whether the device speaks TLS, with a CA that its token pins.

    Raises:
        BrokerMissingError: TLS, and there is no Mosquitto.
    """
    with tempfile.TemporaryDirectory(prefix="potluck-footprint-") as name:
        directory = Path(name)
        gateway = GatewayProcess(directory, toml)
        ca, scheme = "", "mqtt"
        if tls:
            ca, certificate, key = server_certificate(directory)
            gateway.broker = TlsBroker(directory / "broker", certificate, key)
            scheme = "mqtts"
        with gateway:
            broker = gateway.broker
            relay = Relay(broker.tls_port if isinstance(broker, TlsBroker) else broker.port)
            try:
                tokens = directory / "tokens"
                _write_token(gateway.state_dir, tokens, f"{scheme}://{HOST}:{relay.port}", ca)
                gateway.start()
                gateway.wait_for("broker_up", 0.0, PATIENCE_S)
                yield Federation(gateway, relay, directory, tokens)
            finally:
                relay.close()


def _write_token(state_dir: Path, path: Path, url: str, ca: str) -> None:
    store = Store(state_dir / STORE_FILE)
    try:
        identity = load_identity(state_dir, Ed25519())
        made = make_tokens(
            store, identity, count=1, broker=url, secrets=SystemSecrets(), now_s=time.time()
        )
    finally:
        store.close()
    write_tokens(path, [msgspec.structs.replace(token, ca=ca or token.ca) for token in made])
