"""The enrolment token: all that a device needs to join, one line of JSON, good for one device."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from wire.errors import PotluckError

_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class TokenFileError(PotluckError):
    """A token file that cannot be used; the text says what to do."""


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A one-time token: `secret` proves it, `coordinator_key` is whom the device will believe."""

    token_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    secret: _Hex32
    broker: str
    ca: str
    coordinator_key: _Hex32
    expires_at: float


def read_tokens(path: Path) -> list[Token]:
    """Read a token file: one token a line.

    Raises:
        TokenFileError: it cannot be read, is empty, or a line is not a token.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror or error}") from error
    tokens = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            tokens.append(msgspec.json.decode(line, type=Token))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TokenFileError(f"{path}:{number}: not an enrolment token ({error})") from error
    if not tokens:
        raise TokenFileError(f"{path}: holds no token; make some with `potluck enroll`")
    return tokens
