import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import SeededSecrets, StubCrypto
from wire import BadSignatureError


def test_a_stream_follows_from_seed_and_name() -> None:
    streams = [SeededSecrets(1, "a"), SeededSecrets(1, "a"), SeededSecrets(1, "b")]
    one, two, other = ([stream.token(32) for _ in range(3)] for stream in streams)
    assert one == two
    assert len({*one, *other}) == 6


@given(st.binary(max_size=100), st.integers(0, 63))
def test_a_mark_detects_damage_and_mix_ups(statement: bytes, at: int) -> None:
    crypto = StubCrypto()
    signer, other = crypto.signer(b"a" * 32), crypto.signer(b"b" * 32)
    mark = signer.sign(statement)
    crypto.verify(signer.public_key, mark, statement)
    damaged = mark[:at] + bytes((mark[at] ^ 1,)) + mark[at + 1 :]
    for key, signature, text in (
        (other.public_key, mark, statement),
        (signer.public_key, damaged, statement),
        (signer.public_key, mark, statement + b"x"),
        (signer.public_key, b"", statement),
    ):
        with pytest.raises(BadSignatureError):
            crypto.verify(key, signature, text)
