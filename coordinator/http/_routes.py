"""The one table of routes. Requests are dispatched by it, and the OpenAPI document is made from it.

A route's handler is a plain function on a thread of a small pool: it takes a `Desk`, the values of
the path, and what the query or the body says, decoded into the struct that the table names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from coordinator.http import _metrics, _reads, _views, _writes

JSON: Final = "application/json"
NPZ: Final = "application/zip"
# What stands in a path, by its name there.
PATH_VALUES: Final = MappingProxyType(
    {"version": _views.Number, "number": _views.Number, "device": _views.Name}
)


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        path: with names in braces, each of them in `PATH_VALUES`.
        handler: None for those that the application answers by itself.
        gives: the struct of the answer; None for what is no JSON of ours.
        says: one sentence.
        query, body: the struct of what may be asked for.
        media: of the answer.
        also: other statuses than 200 that have the answer's own struct.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Callable[..., Any] | None
    gives: Any
    says: str
    query: Any = None
    body: Any = None
    media: str = JSON
    also: tuple[int, ...] = field(default=())

    @property
    def writes(self) -> bool:
        """Whether it changes something, and needs the token."""
        return self.method == "POST"

    @property
    def names(self) -> tuple[str, ...]:
        """The names in its path."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


def _get(path: str, handler: Callable[..., Any], gives: Any, query: Any = None) -> Route:
    return Route("GET", path, handler, gives, _first_line(handler), query=query)


def _post(path: str, handler: Callable[..., Any], gives: Any, body: Any = None) -> Route:
    return Route("POST", path, handler, gives, _first_line(handler), body=body)


def _first_line(handler: Callable[..., Any]) -> str:
    return (handler.__doc__ or "").partition("\n")[0]


_HEALTHY: Final = (503,)

ROUTES: Final = (
    Route("GET", "/healthz", _reads.healthz, _views.Health, _first_line(_reads.healthz),
          also=_HEALTHY),
    Route("GET", "/readyz", _reads.readyz, _views.Health, _first_line(_reads.readyz),
          also=_HEALTHY),
    _get("/v1/federation", _reads.federation, _views.Federation),
    _get("/v1/rounds", _reads.rounds, _views.Page[_views.Round], _views.ByNumber),
    _get("/v1/rounds/{number}", _reads.one_round, _views.RoundDetail),
    _get("/v1/updates", _reads.updates, _views.Page[_views.Update], _views.WhichUpdates),
    _get("/v1/devices", _reads.devices, _views.Page[_views.Device], _views.ByName),
    _get("/v1/incidents", _reads.incidents, _views.Page[_views.Incident], _views.ByName),
    _get("/v1/participation", _reads.participation, _views.Classes),
    _get("/v1/audit", _reads.audit, _views.Page[_views.Audit], _views.ByNumber),
    _get("/v1/models", _reads.models, _views.Page[_views.Version], _views.ByNumber),
    _get("/v1/models/{version}", _reads.model, _views.Version),
    Route("GET", "/v1/models/{version}/download", _reads.model_file, None,
          "A version's shared tensors as an .npz, checked against their digest.", media=NPZ),
    _get("/v1/releases", _reads.releases, _views.Page[_views.Release], _views.ByNumber),
    _post("/v1/models/{version}/promote", _writes.promote, _views.Moved, _views.WhichAlias),
    _post("/v1/rollback", _writes.rollback, _views.Moved, _views.WhichAlias),
    *(
        Route("POST", f"/v1/devices/{{device}}/{name}", _writes.act_on_device(action), _views.Done,
              _first_line(action), body=_views.Why)
        for name, action in _writes.DEVICE_ACTIONS.items()
    ),
    _post("/v1/pause", _writes.pause, _views.Done),
    _post("/v1/resume", _writes.resume, _views.Done),
    Route("GET", "/metrics", None, None, "Figures for Prometheus.", media=_metrics.MEDIA),
    Route("GET", "/openapi.json", None, None, "This document."),
)  # fmt: skip
