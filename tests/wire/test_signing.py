import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import CRYPTO, DEVICE_KEY, DEVICE_SEED, STRANGER_KEY
from wire.errors import BadSignatureError, RemoteProtocolError
from wire.signing import KEY_BYTES, SIGNATURE_BYTES, SystemSecrets

SIGNER = CRYPTO.signer(DEVICE_SEED)
STATEMENT = b"what was said"
SIGNATURE = SIGNER.sign(STATEMENT)


def test_the_first_vector_of_rfc_8032_holds() -> None:
    signer = CRYPTO.signer(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert signer.public_key.hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert signer.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


@given(seed=st.binary(min_size=32, max_size=32), statement=st.binary(max_size=200))
def test_what_a_key_signs_verifies_under_it(seed: bytes, statement: bytes) -> None:
    signer = CRYPTO.signer(seed)
    signature = signer.sign(statement)
    assert len(signer.public_key) == KEY_BYTES
    assert len(signature) == SIGNATURE_BYTES
    CRYPTO.verify(signer.public_key, signature, statement)


@given(st.binary(max_size=100).filter(lambda other: other != STATEMENT))
def test_another_statement_does_not_verify(other: bytes) -> None:
    with pytest.raises(BadSignatureError):
        CRYPTO.verify(DEVICE_KEY, SIGNATURE, other)


@given(st.integers(0, 511))
def test_every_bit_of_a_signature_matters(bit: int) -> None:
    flipped = bytearray(SIGNATURE)
    flipped[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(BadSignatureError):
        CRYPTO.verify(DEVICE_KEY, bytes(flipped), STATEMENT)


@given(key=st.binary(max_size=40), signature=st.binary(max_size=70))
def test_keys_and_signatures_of_any_length_are_a_bad_signature(
    key: bytes, signature: bytes
) -> None:
    with pytest.raises(BadSignatureError):
        CRYPTO.verify(key, SIGNATURE, STATEMENT)
    with pytest.raises(BadSignatureError):
        CRYPTO.verify(DEVICE_KEY, signature, STATEMENT)


def test_another_key_does_not_verify_and_says_so_in_one_word() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        CRYPTO.verify(STRANGER_KEY, SIGNATURE, STATEMENT)
    assert caught.value.reason == "bad_signature"


def test_reports_call_it_real() -> None:
    assert CRYPTO.name == "real"


def test_secrets_are_as_long_as_asked_and_never_the_same() -> None:
    secrets = SystemSecrets()
    assert [len(secrets.token(size)) for size in (0, 1, 32)] == [0, 1, 32]
    assert secrets.token(32) != secrets.token(32)
