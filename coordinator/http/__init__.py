"""coordinator.http: the API and the metrics, for people, browsers and Prometheus.

An extra room: `coordinator` imports nothing from here, and what it needs (starlette, uvicorn,
prometheus_client) is loaded only when somebody asks for `--http`. See docs/adr/0021.
"""

from coordinator.http._desk import Desk
from coordinator.http._metrics import METRICS
from coordinator.http._openapi import document
from coordinator.http._routes import ROUTES
from coordinator.http._server import HttpAddress, HttpServer, HttpServerError, serve

__all__ = [
    "METRICS",
    "ROUTES",
    "Desk",
    "HttpAddress",
    "HttpServer",
    "HttpServerError",
    "document",
    "serve",
]
