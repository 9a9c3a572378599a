import asyncio
from typing import Any

import pytest

from coordinator.http._guard import BODY_BYTES_MAX, BodyTooLargeError, Bucket, Guard
from tests.support.http_api import TOKEN, Api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(tmp_path_factory.mktemp("api"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "[::1]"]
)
def test_names_of_this_machine_are_served(api: Api, host: str) -> None:
    assert api.ask("GET", "/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1].evil"),
        *("", "@", "[::2]", "[evil", "10.0.0.1"),
    ],
)
def test_a_name_that_was_made_to_point_here_is_not_served(api: Api, host: str) -> None:
    """DNS rebinding: the page's own name arrives as Host."""
    answer = api.ask("GET", "/v1/federation", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]) == (421, "misdirected_request")


def test_no_other_origin_may_read(api: Api) -> None:
    answer = api.ask("GET", "/v1/federation", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = api.ask("OPTIONS", "/v1/pause", headers={"origin": "https://evil.example"})
    assert preflight.status_code == 405


@pytest.mark.parametrize("size", [BODY_BYTES_MAX + 1, 10 * BODY_BYTES_MAX])
def test_a_huge_body_is_refused_before_it_is_read(api: Api, size: int) -> None:
    answer = api.ask("POST", "/v1/models/0/promote", token=TOKEN, content=b"x" * size)
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
    assert answer.headers["connection"] == "close"


def test_a_huge_body_that_does_not_say_so_is_cut_off(api: Api) -> None:
    taken = 0

    async def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 4_096

    answer = api.ask("POST", "/v1/models/0/promote", token=TOKEN, content=endless())
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
    assert taken * 4_096 <= 2 * BODY_BYTES_MAX


def test_a_read_takes_no_body(api: Api) -> None:
    assert api.ask("GET", "/healthz", content=b"x").status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../coordinator.key",
        "/v1/models/..%2f..%2fcoordinator.key/download",
        "/v1/models/%2e%2e/download",
        "/v1/models/0%00/download",
        "/v1/models/-1",
        "/v1/models/1e3",
        "/v1/models/99999999999999999999",
        "/v1/models/0x1/download",
        "/v1/rounds/%F0%9F%8D%B2",
        "/v1/updates?limit=0",
        "/v1/updates?limit=501",
        "/v1/updates?limit=all",
        "/v1/updates?after=-1",
        "/v1/updates?round=1&round=2",
        "/v1/updates?device=' OR 1=1 --",
        "/v1/devices?after=" + "x" * 201,
        "//v1/models",
        "/v1/models/",
    ],
)
def test_a_path_that_is_none_is_refused_by_a_typed_error(api: Api, path: str) -> None:
    answer = api.ask("GET", path)
    assert answer.status_code in {400, 404}
    assert answer.json()["error"] in {"bad_request", "not_found"}


def test_a_path_without_end_is_refused(api: Api) -> None:
    answer = api.ask("GET", "/v1/devices?after=" + "x" * 4_000)
    assert (answer.status_code, answer.json()["error"]) == (414, "too_large")


def test_a_flood_is_served_as_much_as_the_bucket_holds_and_no_more() -> None:
    now_s = 0.0
    bucket = Bucket(per_s=10.0, at_once=5.0, steady=lambda: now_s)
    assert [bucket.take() for _ in range(7)] == [True] * 5 + [False] * 2
    now_s = 0.25
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now_s = 1e6
    assert sum(bucket.take() for _ in range(100)) == 5


def test_who_asks_too_often_is_told_to_come_again() -> None:
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("it was let through")

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, hosts=None, bucket=Bucket(0.0, 0.0))
    asyncio.run(guard(SCOPE, forever, send))
    assert sent[0]["status"] == 429
    assert b"too_many_requests" in sent[1]["body"]


# -- time ----------------------------------------------------------------------------------------

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "headers": [],
    "raw_path": b"/",
    "query_string": b"",
}


async def forever() -> Any:
    await asyncio.sleep(3_600.0)


async def never_sent(_message: Any) -> None:
    await forever()


def test_a_body_that_does_not_come_is_waited_for_and_given_up() -> None:
    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()

    guard = Guard(app, hosts=None, body_s_max=0.01)
    with pytest.raises(TimeoutError):
        asyncio.run(guard(SCOPE, forever, never_sent))


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard = Guard(app, hosts=None, send_s_max=0.01)
    with pytest.raises(TimeoutError):
        asyncio.run(guard(SCOPE, forever, never_sent))


def test_waiting_for_a_client_to_go_has_no_bound() -> None:
    """After the body what is received is the disconnection, which may take as long as an answer."""
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def app(_scope: Any, inner: Any, _send: Any) -> None:
        assert (await inner())["type"] == "http.request"
        assert (await inner())["type"] == "http.disconnect"

    asyncio.run(Guard(app, hosts=None, body_s_max=0.01)(SCOPE, receive, never_sent))


def test_a_body_in_many_pieces_is_bounded_as_a_whole() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 1_024, "more_body": True}

    async def app(_scope: Any, inner: Any, _send: Any) -> None:
        while True:
            await inner()

    with pytest.raises(BodyTooLargeError):
        asyncio.run(Guard(app, hosts=None)(SCOPE, receive, never_sent))
