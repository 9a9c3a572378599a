from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.wire.examples import COORDINATOR_KEY, TOKEN_ID, TOKEN_SECRET
from wire.token import Token, TokenFileError, read_tokens

TOKEN = Token(
    token_id=TOKEN_ID,
    secret=TOKEN_SECRET.hex(),
    broker="mqtts://gateway.local",
    ca="-----BEGIN CERTIFICATE-----\n",
    coordinator_key=COORDINATOR_KEY.hex(),
    expires_at=1_800_000_000.0,
)


def written(directory: Path, data: bytes) -> Path:
    path = directory / "tokens"
    path.write_bytes(data)
    return path


def test_tokens_are_read_as_they_were_written(tmp_path: Path) -> None:
    line = msgspec.json.encode(TOKEN)
    assert read_tokens(written(tmp_path, line)) == [TOKEN]
    assert read_tokens(written(tmp_path, line + b"\n\n  \r\n" + line + b"\n")) == [TOKEN, TOKEN]


@pytest.mark.parametrize("data", [b"", b"\n", b"  \n \r\n"])
def test_a_file_without_tokens_says_how_to_make_some(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TokenFileError, match="potluck enroll"):
        read_tokens(written(tmp_path, data))


@pytest.mark.parametrize(
    "data", [b"x", b"{}", b"[]", b"null", b'{"token_id": "\xff"}', b"\xff\xfe", b"[" * 10_000]
)
def test_a_line_that_is_no_token_is_named_by_its_number(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path, msgspec.json.encode(TOKEN) + b"\n" + data)
    with pytest.raises(TokenFileError, match=r"tokens:2: not an enrolment token"):
        read_tokens(path)


def test_every_truncation_of_a_token_is_refused(tmp_path: Path) -> None:
    line = msgspec.json.encode(TOKEN)
    for size in range(1, len(line)):
        with pytest.raises(TokenFileError):
            read_tokens(written(tmp_path, line[:size]))


@pytest.mark.parametrize(
    "change",
    [
        {"token_id": TOKEN_ID + "\n"},
        {"token_id": TOKEN_ID.upper()},
        {"token_id": TOKEN_ID[1:]},
        {"token_id": "../../../../etc/"},
        {"secret": "00"},
        {"secret": TOKEN.secret + "\n"},
        {"secret": None},
        {"coordinator_key": "g" * 64},
        {"expires_at": "tomorrow"},
        {"more": 1},
    ],
)
def test_a_field_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    fields = msgspec.to_builtins(TOKEN) | change
    with pytest.raises(TokenFileError):
        read_tokens(written(tmp_path, msgspec.json.encode(fields)))


@pytest.mark.parametrize("field", Token.__struct_fields__)
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    fields = msgspec.to_builtins(TOKEN)
    del fields[field]
    with pytest.raises(TokenFileError, match=field):
        read_tokens(written(tmp_path, msgspec.json.encode(fields)))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="No such file"):
        read_tokens(tmp_path / "nothing")
    with pytest.raises(TokenFileError):
        read_tokens(tmp_path)
