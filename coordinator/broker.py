"""A broker of one's own: for the demo, for a laptop, for a gateway that has none yet.

The problem. Federated learning over MQTT needs a broker before anything can be seen to work, and a
first run must need neither root nor a configuration. And a broker that was started must end with
whoever started it, also after `kill -9`, or every crash leaves a port and a process behind.

Mosquitto serves if it is installed (0.02 s to start, 9 MB), else iotcore, which pip brings (0.2 s,
28 MB; it forgets everything when it stops and speaks MQTT 5 alone). Both listen on 127.0.0.1 and
ask for no password: what is published is signed, and who may speak at all is, on this machine, who
may log into it. A fleet in the field has its own broker, with mutual TLS.

What not to do: no broker of our own, and no correctness that hangs on this one's memory.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Self

import psutil

from wire import limits
from wire.errors import PotluckError

Kind = Literal["mosquitto", "iotcore"]

HOST: Final = "127.0.0.1"
START_S: Final = 15.0  # bounds a start on a machine that swaps; 0.2 s is usual
STOP_S: Final = 10.0  # above the guard's own patience with the broker
_POLL_S: Final = 0.01
_PORT_TRIES: Final = 5
_ANSWER_BYTES: Final = 64

# Mosquitto drops silently what passes a subscriber's queue, whichever of the two bounds comes
# first; its own default of 1,000 messages is less than one cohort's chunks.
_QUEUED_MESSAGES_MAX: Final = 100_000
_QUEUED_BYTES_MAX: Final = 536_870_912
_IN_FLIGHT_MAX: Final = 64
# rumqttd keeps a log for each subscription and drops the oldest segment when it is full. The
# coordinator has one subscription and may lag; each device has its own and it is never freed.
_LOG_SEGMENT_BYTES: Final = 8_388_608
_LOG_SEGMENTS: Final = 16
_DEVICE_LOG_SEGMENT_BYTES: Final = 1_048_576
_DEVICE_LOG_SEGMENTS: Final = 4
_CONNECTIONS_MAX: Final = 20_000

# MQTT 5.0, sections 3.1 and 3.14: CONNECT with clean start, 10 s keep-alive, no properties and the
# client id "potluck-ready"; DISCONNECT.
_CONNECT: Final = b"\x10\x1a\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x0dpotluck-ready"
_DISCONNECT: Final = b"\xe0\x00"
_CONNACK: Final = 0x20

# Where Debian and Homebrew put mosquitto; often on nobody's PATH but root's.
_SBIN: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


class BrokerMissingError(PotluckError):
    """There is no broker to start on this machine; the text says what to install."""


class BrokerStartError(PotluckError):
    """The broker did not start, or does not answer; the text has its last word."""


def mosquitto_path() -> str | None:
    """The mosquitto program, also where a user's PATH does not look."""
    places = (os.environ.get("PATH", os.defpath), *_SBIN)
    return shutil.which("mosquitto", path=os.pathsep.join(places))


def available_kinds() -> tuple[Kind, ...]:
    """The brokers that can be started here, the preferred one first."""
    found: list[Kind] = []
    if mosquitto_path() is not None:
        found.append("mosquitto")
    if importlib.util.find_spec("iotcore") is not None:
        found.append("iotcore")
    return tuple(found)


class EmbeddedBroker:
    """A broker in a process of its own, on loopback, that ends with this process.

    The port is chosen at the first start and kept: after `kill()`, `start()` serves the same URL.

    Args:
        port: a fixed port; None takes a free one.
        kind: which broker; None takes the first of `available_kinds()`.
        state_dir: where configuration and log go, made if need be; None is a temporary directory
            that disappears with the broker.
        persistence_dir: where Mosquitto keeps sessions and queued messages over a restart, saved
            at most one second late; None keeps nothing. iotcore cannot: it ignores this.
        packet_bytes_max: the largest MQTT packet that is let through, topic and header included.

    Raises:
        BrokerMissingError: this machine has no broker, or not the wanted one.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        kind: Kind | None = None,
        state_dir: Path | None = None,
        persistence_dir: Path | None = None,
        packet_bytes_max: int = limits.PACKET_BYTES_MAX_DEFAULT,
    ) -> None:
        kinds = available_kinds()
        if kind is None and not kinds:
            raise BrokerMissingError(
                "no MQTT broker on this machine: install mosquitto, or iotcore"
                " (pip install 'potluck[coordinator]'), or name a running one (mqtt://HOST:PORT)"
            )
        if kind is not None and kind not in kinds:
            raise BrokerMissingError(f"{kind} is not installed on this machine: install it")
        self.kind: Kind = kind or kinds[0]
        self._port = port
        self._port_is_fixed = port is not None
        self._state_dir = state_dir
        self._persistence_dir = persistence_dir
        self._packet_bytes_max = packet_bytes_max
        self._guard: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._pid: int | None = None
        self._temporary: Path | None = None

    # -- what is known of it -----------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port it listens on, or will again."""
        if self._port is None:
            raise BrokerStartError("the broker has no port before its first start")
        return self._port

    @property
    def url(self) -> str:
        """Its address, `mqtt://127.0.0.1:PORT`."""
        return f"mqtt://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the broker itself."""
        if self._pid is None:
            raise BrokerStartError("the broker is not running")
        return self._pid

    @property
    def running(self) -> bool:
        """Whether the broker was started and still listens."""
        if self._guard is None or self._guard.poll() is not None or self._pid is None:
            return False
        return _listens(self._pid, self.port)

    # -- start and stop ----------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and return when it answers; does nothing if it runs.

        Raises:
            BrokerStartError: the port is taken, or the broker ended or stayed silent.
        """
        if self.running:
            return
        self.stop()  # what is left of one that died
        tries = 1 if self._port_is_fixed else _PORT_TRIES
        for attempt in range(1, tries + 1):
            port = self._port if self._port is not None else free_port()
            try:
                self._start_on(port)
            except BrokerStartError:
                self.stop()
                # Somebody may have taken the port between our look and the broker's.
                if attempt == tries or _port_is_free(port):
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                self._port, self._port_is_fixed = port, True
                return

    def stop(self) -> None:
        """End it in good order; does nothing if it does not run."""
        guard, self._guard, self._pid = self._guard, None, None
        if guard is not None:
            assert guard.stdin is not None, "made with a pipe"  # noqa: S101 - for the type checker
            with contextlib.suppress(OSError):
                guard.stdin.close()
            try:
                guard.wait(STOP_S)
            except subprocess.TimeoutExpired:
                guard.kill()  # on Linux the kernel ends the broker then
                guard.wait()
            _close(guard.stdout)
        log, self._log = self._log, None
        _close(log)
        if self._temporary is not None:  # the guard has removed it, unless it was killed
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), for tests; `start()` brings it back."""
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).kill()
        self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- one attempt -------------------------------------------------------------------------

    def _start_on(self, port: int) -> None:
        if not _port_is_free(port):
            raise BrokerStartError(
                f"port {port} on {HOST} is taken: stop what listens there, or choose another"
            )
        directory, guard_options = self._directory()
        config = directory / ("mosquitto.conf" if self.kind == "mosquitto" else "iotcore.toml")
        config.write_text(self._config(port), encoding="utf-8")
        here = Path(__file__).parent
        if self.kind == "mosquitto":
            command = [mosquitto_path() or "mosquitto", "-c", str(config)]
        else:
            command = [sys.executable, "-P", str(here / "_iotcore_broker.py"), str(config)]
        self._log = (directory / "broker.log").open("a+b")
        self._log.seek(0, os.SEEK_END)
        log_start = self._log.tell()
        self._guard = subprocess.Popen(  # noqa: S603 - our own file and our own command
            [
                *(sys.executable, "-I", "-S", str(here / "_broker_guard.py")),
                *guard_options,
                *("--parent", str(os.getpid())),
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for us, who stop the broker last
        )
        self._await_answer(port, log_start)

    def _directory(self) -> tuple[Path, list[str]]:
        """Where this start's files go, and what the guard is told about it."""
        if self._state_dir is None:
            self._temporary = path = Path(tempfile.mkdtemp(prefix="potluck-broker-"))
            return path, ["--remove", str(path)]
        path = self._state_dir.resolve()
        path.mkdir(parents=True, exist_ok=True)
        return path, []

    def _config(self, port: int) -> str:
        if self.kind == "iotcore":
            return iotcore_config(port, self._packet_bytes_max)
        persistence = None
        if self._persistence_dir is not None:
            persistence = self._persistence_dir.resolve()
            persistence.mkdir(parents=True, exist_ok=True)
        return mosquitto_config(port, self._packet_bytes_max, persistence)

    def _await_answer(self, port: int, log_start: int) -> None:
        guard, log = self._guard, self._log
        if guard is None or guard.stdout is None or log is None:
            raise BrokerStartError("the broker was stopped while it started")
        line = guard.stdout.readline()
        if not line.strip().isdigit():
            raise BrokerStartError(f"{self.kind} did not start: {_last_line(log, log_start)}")
        self._pid = int(line)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if guard.poll() is not None:
                raise BrokerStartError(f"{self.kind} did not start: {_last_line(log, log_start)}")
            # Asked in this order so that the answer cannot come from a stranger on our port.
            if _listens(self._pid, port) and _answers(port):
                return
            time.sleep(_POLL_S)
        raise BrokerStartError(
            f"{self.kind} did not answer on {HOST}:{port} within {START_S:.0f} s:"
            f" {_last_line(log, log_start)}"
        )


def mosquitto_config(port: int, packet_bytes_max: int, persistence_dir: Path | None) -> str:
    """Configuration for Mosquitto 2: loopback, explicit limits, nothing lost after a PUBACK."""
    lines = [
        f"listener {port} {HOST}",
        "allow_anonymous true",
        "set_tcp_nodelay true",
        f"max_packet_size {packet_bytes_max}",
        f"max_queued_messages {_QUEUED_MESSAGES_MAX}",
        f"max_queued_bytes {_QUEUED_BYTES_MAX}",
        f"max_inflight_messages {_IN_FLIGHT_MAX}",
        "sys_interval 0",  # nobody reads $SYS here
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        "connection_messages false",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Started by root it would become the user "mosquitto", who may not read our directories.
        lines.append("user root")
    if persistence_dir is None:
        lines.append("persistence false")
    else:
        lines += [
            "persistence true",
            f"persistence_location {persistence_dir}/",
            "autosave_on_changes true",
            "autosave_interval 1",
        ]
    return "\n".join(lines) + "\n"


def iotcore_config(port: int, packet_bytes_max: int) -> str:
    """Configuration for iotcore (rumqttd 0.20), whose defaults are 0.0.0.0 and 20 KB a packet.

    It has one listener for each version of MQTT; ours is for version 5, the one that `MqttLink`
    tries first. The payload bound counts the variable header too, hence the whole packet.
    """
    return f"""\
id = 0
[router]
id = 0
max_connections = {_CONNECTIONS_MAX}
max_outgoing_packet_count = 200
max_segment_size = {max(_LOG_SEGMENT_BYTES, packet_bytes_max)}
max_segment_count = {_LOG_SEGMENTS}
[router.custom_segment.'potluck/{limits.PROTOCOL_MAJOR}/+/+/down']
max_segment_size = {max(_DEVICE_LOG_SEGMENT_BYTES, packet_bytes_max)}
max_segment_count = {_DEVICE_LOG_SEGMENTS}
[v5.1]
name = "potluck"
listen = "{HOST}:{port}"
next_connection_delay_ms = 0
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {packet_bytes_max}
max_inflight_count = 100
"""


def free_port() -> int:
    """A port that is free now; whoever comes first may take it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        if sys.platform != "win32":  # there the option means that two may listen
            # As brokers do: connections that linger in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _listens(pid: int, port: int) -> bool:
    """Whether that very process listens on the port, as far as the system lets us see."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in connections
    )


def _answers(port: int) -> bool:
    """Whether a CONNECT gets its CONNACK, with success."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(_CONNECT)
            answer = connection.recv(_ANSWER_BYTES)
            connection.sendall(_DISCONNECT)
    except OSError:
        return False
    # Fixed header, remaining length, acknowledge flags, reason code (MQTT 5.0, section 3.2).
    return len(answer) > 3 and answer[0] == _CONNACK and answer[3] == 0  # noqa: PLR2004 - as above


def _last_line(log: IO[bytes], start: int) -> str:
    """The last thing that the broker said in this start."""
    log.seek(start)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _close(file: Any) -> None:
    if file is not None:
        file.close()
