import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import DEVICE, DOWN, ENROL_UP, UP
from wire import Address, limits, topics
from wire.errors import RemoteProtocolError, UnknownSenderError

names = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z").filter(lambda name: name != "enrol")
ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
directions = st.sampled_from(["up", "down"])


@given(scope=names | ids.map(topics.enrolment_scope), device=ids, up=st.booleans())
def test_a_topic_is_read_as_it_was_written(scope: str, device: str, up: bool) -> None:  # noqa: FBT001 - hypothesis calls it
    address = Address(scope, device, "up" if up else "down")
    assert topics.parse(address.topic) == address
    assert len(address.topic.split("/")) <= limits.TOPIC_LEVELS_MAX
    assert len(address.topic.encode()) <= limits.TOPIC_BYTES_MAX


def test_topics_are_what_the_page_says() -> None:
    assert UP.topic == f"potluck/1/digits/{DEVICE}/up"
    assert DOWN.topic == f"potluck/1/digits/{DEVICE}/down"
    assert ENROL_UP.topic.startswith("potluck/1/enrol/")
    assert topics.uplink_filter("digits") == "potluck/1/digits/+/up"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "potluck",
        "potluck/1",
        "potluck/1/",
        "potluck/1/up",
        f"potluck/1/{DEVICE}/up",
        f"potluck/1//{DEVICE}/up",
        f"potluck/1/digits/{DEVICE}",
        f"potluck/1/digits/{DEVICE}/",
        f"potluck/1/digits/{DEVICE}/UP",
        f"potluck/1/digits/{DEVICE}/up/",
        f"potluck/1/digits/{DEVICE}/up\n",
        f"potluck/1/digits/x/{DEVICE}/up",
        f"potluck/1/a/b/c/{DEVICE}/up",
        f"potluck/1/a/b/c/d/{DEVICE}/up",
        f"potluck/2/digits/{DEVICE}/up",
        f"potluck/01/digits/{DEVICE}/up",
        f"Potluck/1/digits/{DEVICE}/up",
        f"/potluck/1/digits/{DEVICE}/up",
        f"potluck/1/enrol/{DEVICE}/up",
        f"potluck/1/enrol//{DEVICE}/up",
        f"potluck/1/enrol/digits/{DEVICE}/up",
        f"potluck/1/enrol/{DEVICE}/{DEVICE}/{DEVICE}/up",
        f"potluck/1/Digits/{DEVICE}/up",
        f"potluck/1/+/{DEVICE}/up",
        f"potluck/1/-x/{DEVICE}/up",
        f"potluck/1/{'d' * 65}/{DEVICE}/up",
        f"potluck/1/{'d' * 65_000}/{DEVICE}/up",
        f"potluck/1/{'é' * 200}/{DEVICE}/up",
        f"potluck/1/\ud800/{DEVICE}/up",
        "$SYS/broker/clients/connected",
    ],
)
def test_what_is_no_topic_of_ours_is_refused(topic: str) -> None:
    with pytest.raises(RemoteProtocolError):
        topics.parse(topic)


@pytest.mark.parametrize(
    "device",
    ["", "enrol", "0", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "+", "é" * 16],
)
def test_what_is_no_device_id_is_an_unknown_sender(device: str) -> None:
    with pytest.raises(UnknownSenderError):
        topics.parse(f"potluck/1/digits/{device}/up")


def test_a_newline_does_not_pass_for_the_end_of_a_name() -> None:
    for topic in (f"potluck/1/digits\n/{DEVICE}/up", f"potluck/1/digits/{DEVICE[:-1]}\n/up"):
        with pytest.raises(RemoteProtocolError):
            topics.parse(topic)


@given(st.text(max_size=300) | st.lists(st.text(max_size=8), max_size=9).map("/".join))
def test_any_text_is_a_topic_or_a_protocol_error(text: str) -> None:
    try:
        address = topics.parse(text)
    except RemoteProtocolError:
        return
    assert address.topic == text


@given(st.lists(st.sampled_from(["potluck", "1", "enrol", "up", "down", "", DEVICE]), max_size=8))
def test_the_words_of_topics_in_any_order_are_a_topic_or_a_protocol_error(
    levels: list[str],
) -> None:
    text = "/".join(levels)
    try:
        address = topics.parse(text)
    except RemoteProtocolError:
        return
    assert address.topic == text


@pytest.mark.parametrize("name", ["a", "0", "digits", "a.b-c_d", "a" * 64, "enrolment"])
def test_names_that_a_federation_may_have(name: str) -> None:
    assert topics.federation_name_is_valid(name)
    assert topics.parse(Address(name, DEVICE, "up").topic).scope == name


@pytest.mark.parametrize(
    "name", ["", "enrol", "A", "-a", ".a", "_a", "a/b", "a b", "a+", "a#", "é", "a\n", "a" * 65]
)
def test_names_that_a_federation_may_not_have(name: str) -> None:
    assert not topics.federation_name_is_valid(name)
