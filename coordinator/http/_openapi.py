"""The OpenAPI 3.1 document, made from the table of routes and from the structs that it names."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from coordinator.http._routes import JSON, PATH_VALUES, Route
from coordinator.http._views import Problem

OPENAPI: Final = "3.1.0"
_REF: Final = "#/components/schemas/{name}"
_BEARER: Final = "token"
_WRONG: Final = {
    "400": "The request is not one: a parameter, the body, the host.",
    "404": "There is nothing of that name.",
    "503": "The coordinator is busy, or its store cannot be read.",
}
_WRONG_WRITES: Final = {
    **_WRONG,
    "401": "The token of `http-token` is missing or wrong.",
    "409": "It cannot be done as things are.",
    "413": "The body is too large.",
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole document."""
    table = list(routes)
    types = [Problem]
    for route in table:
        types += [kind for kind in (route.gives, route.body) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    known = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, known)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "potluck coordinator",
            "version": version,
            "description": "Reads need no token. Writes need the one in the state directory's"
            " http-token, as Authorization: Bearer TOKEN.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {_BEARER: {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, known: dict[str, Any]) -> dict[str, Any]:
    good: Any = {} if route.gives is None else {"schema": known[repr(route.gives)]}
    answer = {"description": route.says, "content": {route.media: good}}
    problem = {"content": {JSON: {"schema": known[repr(Problem)]}}}
    wrong = _WRONG_WRITES if route.writes else _WRONG
    operation: dict[str, Any] = {
        "summary": route.says,
        "operationId": _name(route),
        "parameters": [*_path_parameters(route.names), *_query_parameters(route.query)],
        "responses": {
            "200": answer,
            **{status: {"description": says, **problem} for status, says in wrong.items()},
            **{str(status): answer for status in route.also},
        },
    }
    if route.body is not None:
        content = {JSON: {"schema": known[repr(route.body)]}}
        operation["requestBody"] = {"required": False, "content": content}
    if route.writes:
        operation["security"] = [{_BEARER: []}]
    return operation


def _name(route: Route) -> str:
    words = [part.strip("{}") for part in route.path.split("/") if part and part != "v1"]
    return "_".join((route.method.lower(), *words)).replace(".", "_")


def _path_parameters(names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": msgspec.json.schema(PATH_VALUES[name]),
        }
        for name in names
    ]


def _query_parameters(query: Any) -> list[dict[str, Any]]:
    if query is None:
        return []
    return [
        {
            "name": field.name,
            "in": "query",
            "required": False,
            "schema": {**msgspec.json.schema(field.type), "default": field.default},
        }
        for field in msgspec.structs.fields(query)
    ]
