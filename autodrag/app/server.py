"""The server, assembled from the page, the API and the guard."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from autodrag import __version__
from autodrag.app.config import AppConfig
from autodrag.app.connection import limited_protocol
from autodrag.app.guard import Guard
from autodrag.app.routes import build, edit_schema
from autodrag.app.service import Busy, NotFound, Service
from autodrag.errors import AutodragError

PAGE = Path(__file__).with_name("page")


def create_app(config: AppConfig) -> tuple[ASGIApp, FastAPI, Service]:
    """The guarded application to serve, the API inside it (for its `openapi()`), and the service."""
    service = Service(config)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(service.watch())
        yield
        watch.cancel()
        await asyncio.to_thread(service.close)

    api = FastAPI(
        title="autodrag",
        version=__version__,
        description="Drag points of StyleGAN2 images. Points are (x, y) in px of the image, integers at pixel centres, "
        "y down. Edits are those of the command line and of session files.",
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,  # these pages would load scripts from other hosts
        redoc_url=None,
    )
    api.include_router(build(service))
    api.mount("/", Page(directory=PAGE, html=True))
    _describe(api)
    _explain(api)
    return Guard(api, config), api, service


class Page(StaticFiles):
    """The page's files. Browsers check for changes at every load, so that an update is visible at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file with a `Cache-Control` header."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def _describe(api: FastAPI) -> None:
    """Add the edit schema to the OpenAPI document."""
    original: Callable[[], dict[str, Any]] = api.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        document["components"]["schemas"].update(edit_schema())
        return document

    api.openapi = openapi  # type: ignore[method-assign]


def _explain(api: FastAPI) -> None:
    """Turn all errors of requests into one sentence under `detail`."""

    def sentence(status: int, text: str) -> JSONResponse:
        return JSONResponse({"detail": " ".join(text.split())}, status)

    @api.exception_handler(AutodragError)
    async def unusable(_: Request, error: AutodragError) -> JSONResponse:
        return sentence(404 if isinstance(error, NotFound) else 503 if isinstance(error, Busy) else 422, str(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return sentence(422, f"at {place[:100]}: {first['msg']}")

    @api.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        answer = sentence(error.status_code, str(error.detail))
        if error.headers:
            answer.headers.update(error.headers)
        return answer

    @api.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return sentence(400, "the body was cut off")


def make_server(config: AppConfig, announce: Callable[[str], None]) -> uvicorn.Server:
    """A server that is started by `run()`. `announce` is called with its address as soon as it listens."""
    guarded, _, _ = create_app(config)
    options = uvicorn.Config(
        guarded,
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,  # it would contain the keys of sessions
        server_header=False,
        http=limited_protocol(config.header_s),
        ws_max_size=config.message_bytes,
        ws_per_message_deflate=False,  # images are compressed already
        limit_concurrency=config.sessions * 8,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=32 * 2**10,
    )
    return _Announcing(options, config, announce)


def reachable(host: str) -> str:
    """The address at which clients reach a server that listens on `host`.

    0.0.0.0 and :: mean all interfaces and are no addresses of a machine. They give the address of the interface with
    the default route, or of the loopback interface if there is no network.
    """
    probes = {"0.0.0.0": (socket.AF_INET, "192.0.2.1", "127.0.0.1"), "::": (socket.AF_INET6, "2001:db8::1", "::1")}
    if host not in probes:
        return host
    family, elsewhere, loopback = probes[host]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # chooses the interface and sends nothing
            name: str = probe.getsockname()[0]
    except OSError:
        return loopback
    return name


class _Announcing(uvicorn.Server):
    def __init__(self, options: uvicorn.Config, config: AppConfig, announce: Callable[[str], None]) -> None:
        super().__init__(options)
        self._told, self._announce = config, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then announce the address."""
        await super().startup(sockets)
        if self.started:
            config = self._told
            port = self.servers[0].sockets[0].getsockname()[1]
            host = reachable(config.host)
            host = f"[{host}]" if ":" in host else host
            self._announce(f"http://{host}:{port}/" + (f"?token={config.token}" if config.token else ""))
