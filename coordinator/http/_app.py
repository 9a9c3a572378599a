"""The ASGI application: routes, errors, the token.

Handlers run on a pool of few threads, so that clients share those and the round's loop keeps its
own. A handler's errors become a `Problem`; a request is never answered with a traceback.
"""

import hmac
import sqlite3
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route as StarletteRoute

from coordinator.calls import BusyError
from coordinator.http import _openapi
from coordinator.http._desk import Desk, NotFoundError
from coordinator.http._guard import BODY_BYTES_MAX, BodyTooLargeError, Bucket, Guard
from coordinator.http._metrics import Scrape
from coordinator.http._routes import JSON, NPZ, PATH_VALUES, ROUTES, Route
from coordinator.http._views import Health, Problem
from coordinator.registry import RegistryError, UnknownVersionError
from coordinator.store import StoreError

Endpoint = Callable[[Request], Awaitable[Response]]

# What else comes on this connection is not wanted.
_CLOSE: Final = {"connection": "close"}
_OK: Final = 200
_UNAVAILABLE: Final = 503
_WORDS: Final = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    503: "unavailable",
}


def make_app(
    desk: Desk, token: str, *, hosts: frozenset[str] | None, bucket: Bucket | None = None
) -> Guard:
    """The application.

    Args:
        desk: the coordinator.
        token: what writes have to show.
        hosts: names that a request's Host may have; None for any.
        bucket: how many requests are served.
    """
    scrape = Scrape(desk)
    document = msgspec.json.encode(_openapi.document(ROUTES, version("potluck")))

    async def metrics(_request: Request) -> Response:
        return Response(await run_in_threadpool(scrape.text), headers={"content-type": _METRICS})

    async def openapi(_request: Request) -> Response:
        return Response(document, media_type=JSON)

    own: dict[str, Endpoint] = {"/metrics": metrics, "/openapi.json": openapi}
    app = Starlette(
        routes=[
            StarletteRoute(
                route.path,
                _errors_told(own.get(route.path) or _endpoint(route, desk, token)),
                methods=[route.method],
            )
            for route in ROUTES
        ],
        exception_handlers={HTTPException: _refused},
    )
    app.router.redirect_slashes = False
    return Guard(app, hosts=hosts, bucket=bucket)


_METRICS: Final = next(route.media for route in ROUTES if route.path == "/metrics")


def _endpoint(route: Route, desk: Desk, token: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        if route.writes:
            _authorize(request, token)
        values = {name: _convert(request.path_params[name], PATH_VALUES[name], name)
                  for name in route.names}  # fmt: skip
        if route.query is not None:
            values["query"] = _query(request, route.query)
        elif request.query_params:
            raise _problem(400, "this takes no parameters")
        if route.body is not None:
            values["body"] = await _body(request, route.body)
        if route.handler is None:
            raise _problem(404, "not here")
        made = await run_in_threadpool(route.handler, desk, **values)
        if route.media == NPZ:
            return _file(request, values["version"], *made)
        status = _UNAVAILABLE if isinstance(made, Health) and made.status != "ok" else _OK
        return Response(msgspec.json.encode(made), status, media_type=JSON)

    return endpoint


def _authorize(request: Request, token: str) -> None:
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise HTTPException(
            401,
            "writes need Authorization: Bearer TOKEN, with the token of the state directory's"
            " http-token",
            {"www-authenticate": "Bearer"},
        )


def _convert(text: str, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _problem(400, f"{name}: {error}") from error


def _query(request: Request, kind: Any) -> Any:
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) != len(pairs):
        raise _problem(400, "a parameter is given twice")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _problem(400, str(error)) from error


async def _body(request: Request, kind: Any) -> Any:
    data = await request.body()
    if not data:
        return kind()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _problem(400, f"the body: {error}") from error


def _file(request: Request, number: int, path: Path, digest: str) -> Response:
    tag = f'"{digest}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return FileResponse(path, media_type=NPZ, filename=f"model-{number}.npz", headers={"etag": tag})


# -- errors --------------------------------------------------------------------------------------


def _problem(status: int, detail: str) -> HTTPException:
    return HTTPException(status, detail)


def _errors_told(endpoint: Endpoint) -> Endpoint:
    """The same, with every error of ours as one that HTTP has a number for."""

    async def told(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise
        except BodyTooLargeError as error:
            raise HTTPException(
                413, f"a body has at most {BODY_BYTES_MAX} bytes", _CLOSE
            ) from error
        except TimeoutError as error:
            raise HTTPException(408, "the body did not come in time", _CLOSE) from error
        except (NotFoundError, UnknownVersionError) as error:
            raise _problem(404, str(error)) from error
        except RegistryError as error:
            raise _problem(409, str(error)) from error
        except (BusyError, StoreError, sqlite3.Error, OSError) as error:
            raise _problem(503, str(error)) from error
        except Exception as error:
            raise HTTPException(500, f"{type(error).__name__}: please report it") from error

    return told


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    word = _WORDS.get(error.status_code, "failed")
    detail = {404: "nothing is served at this path", 405: "this path takes another method"}.get(
        error.status_code, error.detail
    )
    own = error.detail != HTTPStatus(error.status_code).phrase
    return Response(
        msgspec.json.encode(Problem(word, error.detail if own else detail)),
        error.status_code,
        headers=dict(error.headers or {}),
        media_type=JSON,
    )
