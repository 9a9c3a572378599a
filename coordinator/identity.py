"""Who the coordinator is: its signing key, its certificate authority, and the tokens it hands out.

Keys are made once, by `potluck coordinator init`, and live in the state directory with mode 0600.
A token is all that a device needs to join, and works once; it is a line of JSON in a file.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from coordinator.store import Store, StoreError
from wire import BrokerAddress, Crypto, SecretSource, Signer
from wire.token import Token

KEY_FILE: Final = "coordinator.key"
CA_KEY_FILE: Final = "ca.key"
CA_FILE: Final = "ca.pem"
STORE_FILE: Final = "coordinator.sqlite3"
HTTP_TOKEN_FILE: Final = "http-token"  # noqa: S105 - a file's name
_HTTP_TOKEN_CHARS_MIN: Final = 32
TOKEN_LIFETIME_S: Final = 7 * 86_400.0
# A gateway outlives its devices' batteries; clocks of devices without one start in the past.
_CERTIFICATE_DAYS: Final = 3_650
_EPOCH: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Identity:
    """The coordinator's keys, read from a state directory."""

    signer: Signer
    ca_certificate: bytes
    ca_key: Ed25519PrivateKey

    def certify(self, device: str, public_key: bytes, now_s: float) -> bytes:
        """An X.509 certificate (PEM) for a device's Ed25519 key, its id as the common name."""
        ca = x509.load_pem_x509_certificate(self.ca_certificate)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
        until = dt.datetime.fromtimestamp(now_s, dt.UTC) + dt.timedelta(days=_CERTIFICATE_DAYS)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca.subject)
            .public_key(Ed25519PublicKey.from_public_bytes(public_key))
            # Serial from the id: the same device asking twice gets the same certificate.
            .serial_number(int(device, 16) + 1)
            .not_valid_before(_EPOCH)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.ca_key, algorithm=None)
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _write_secret(path: Path, data: bytes) -> None:
    """Whole or not at all, never over another file, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            raise FileExistsError(path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def init_state(state_dir: Path, secrets: SecretSource) -> bytes:
    """Make a state directory: keys, CA, an empty store. Returns the coordinator's public key.

    Raises:
        StoreError: it exists already, or cannot be written.
    """
    if (state_dir / KEY_FILE).exists():
        raise StoreError(f"{state_dir}: is a coordinator's state already; nothing was changed")
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        ca_key = Ed25519PrivateKey.from_private_bytes(secrets.token(32))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "potluck coordinator CA")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(ca_key.public_key())
            .serial_number(int.from_bytes(secrets.token(16), "big") | 1)
            .not_valid_before(_EPOCH)
            .not_valid_after(_EPOCH + dt.timedelta(days=3 * _CERTIFICATE_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(ca_key, algorithm=None)
        )
        # What an attempt that was cut short has left is worth nothing without the last file.
        (state_dir / CA_KEY_FILE).unlink(missing_ok=True)
        _write_secret(state_dir / CA_KEY_FILE, ca_key.private_bytes_raw())
        (state_dir / CA_FILE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        Store(state_dir / STORE_FILE).close()
        key = secrets.token(32)
        # Last: its presence says that the directory is whole.
        _write_secret(state_dir / KEY_FILE, key)
    except OSError as error:
        raise StoreError(f"{state_dir}: {error.strerror or error}") from error
    return Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def load_identity(state_dir: Path, crypto: Crypto) -> Identity:
    """Read the keys.

    Raises:
        StoreError: nobody has run `potluck coordinator init` here.
    """
    try:
        key = (state_dir / KEY_FILE).read_bytes()
        ca_key = (state_dir / CA_KEY_FILE).read_bytes()
        ca = (state_dir / CA_FILE).read_bytes()
    except FileNotFoundError as error:
        raise StoreError(
            f"{state_dir}: no coordinator here; run `potluck coordinator init {state_dir}`"
        ) from error
    except OSError as error:
        raise StoreError(f"{state_dir}: {error.strerror or error}") from error
    try:
        return Identity(
            signer=crypto.signer(key),
            ca_certificate=ca,
            ca_key=Ed25519PrivateKey.from_private_bytes(ca_key),
        )
    except ValueError as error:
        raise StoreError(
            f"{state_dir}: a key file is damaged ({error}); restore it from a backup"
        ) from error


def make_tokens(
    store: Store,
    identity: Identity,
    *,
    count: int,
    broker: str,
    secrets: SecretSource,
    now_s: float,
    lifetime_s: float = TOKEN_LIFETIME_S,
) -> list[Token]:
    """Make one-time tokens and remember their secrets.

    Raises:
        BrokerAddressError: the broker's URL is not one.
    """
    BrokerAddress.parse(broker)
    tokens = [
        Token(
            token_id=secrets.token(8).hex(),
            secret=secrets.token(32).hex(),
            broker=broker,
            ca=identity.ca_certificate.decode(),
            coordinator_key=identity.signer.public_key.hex(),
            expires_at=now_s + lifetime_s,
        )
        for _ in range(count)
    ]
    store.add_tokens(
        {token.token_id: bytes.fromhex(token.secret) for token in tokens}, now_s + lifetime_s
    )
    return tokens


def write_tokens(path: Path, tokens: Sequence[Token]) -> None:
    """One token a line, readable by its owner alone.

    Raises:
        StoreError: the file exists (tokens are not overwritten) or cannot be written.
    """
    text = b"".join(msgspec.json.encode(token) + b"\n" for token in tokens)
    try:
        _write_secret(path, text)
    except FileExistsError as error:
        raise StoreError(f"{path}: exists already; choose another file for the tokens") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error


def http_token(state_dir: Path, secrets: SecretSource) -> str:
    """What whoever may change things over HTTP has to show; made when it is not there.

    Raises:
        StoreError: the file cannot be read or written, others can read it, or it holds no secret.
    """
    path = state_dir / HTTP_TOKEN_FILE
    try:
        if not path.exists():
            _write_secret(path, secrets.token(32).hex().encode() + b"\n")
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}") from error
    if os.name == "posix" and mode & 0o077:
        raise StoreError(f"{path}: others can read it; chmod 600 it, or delete it for a new one")
    if len(token) < _HTTP_TOKEN_CHARS_MIN or not token.isalnum():
        raise StoreError(
            f"{path}: is no token of {_HTTP_TOKEN_CHARS_MIN} or more letters and digits; delete it"
            " for a new one"
        )
    return token
