"""Access control and request limits, as plain ASGI middleware around the whole application.

* `Host` must be an address or a known name. A page of another site can point its own name to this server (DNS
  rebinding), but its browser then sends that name.
* `Origin`, which browsers send with WebSockets and with requests that change something, must be this host.
* If the server has a token, every request needs it: as a bearer token, or as the cookie that `/?token=...` sets.
* The size of a body and the time until it has arrived are limited.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autodrag.app.config import AppConfig, is_loopback

COOKIE = "autodrag_token"
TOKEN_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>autodrag: token needed</title>
<h1>This editor needs a token</h1>
<p>Open the full address that <code>autodrag app</code> printed when it started. It ends with <code>?token=…</code></p>
<p>If you do not have the address, ask the person who started the server.</p>
</html>
"""
"""What a browser shows instead of the JSON of a 401. It uses no other file, because these need the token too."""
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """The middleware; see the module."""

    def __init__(self, app: ASGIApp, config: AppConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, WebSocket or lifespan."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        offered = self._offered(scope)
        if offered is not None:
            await _enter(scope, send, offered)
            return
        await self._serve(scope, receive, send, headers)

    # --- access -------------------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and sentence of a refusal; None: accepted."""
        host = headers.get("host", "")
        if not self._known(host):
            return 421, f"host {host[:100]!r} is not served here; use the address that the server printed"
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if origin is not None and changes and urlsplit(origin).netloc.lower() != host.lower():
            return 403, f"origin {origin[:100]!r} is another site; open the editor from this server"
        if self._config.token is not None and not self._has_token(scope, headers):
            return 401, "a token is needed; open the address that the server printed, or send it as a bearer token"
        return None

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
        except ValueError:
            return False
        if name in ("localhost", self._config.host.lower(), *map(str.lower, self._config.hosts)):
            return True
        if self._config.is_local:
            return is_loopback(name)
        try:  # DNS rebinding needs a name
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            jar = SimpleCookie()
        given = [bearer.strip() if kind.lower() == "bearer" else "", jar[COOKIE].value if COOKIE in jar else ""]
        return any(self._right(token) for token in given) or self._offered(scope) is not None

    def _offered(self, scope: Scope) -> str | None:
        """The token, if a request for the page has the right one in its query."""
        if self._config.token is None or scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            return None
        return next((value for name, value in parse_qsl(_query(scope)) if name == "token" and self._right(value)), None)

    def _right(self, token: str) -> bool:
        expected = self._config.token or ""
        return bool(token) and hmac.compare_digest(token.encode(), expected.encode())

    # --- limits -------------------------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        limit, started = self._config.body_bytes, time.monotonic()
        too_large = f"the body is larger than the limit of {limit} bytes"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limit:
            await _refuse(scope, receive, send, 413, too_large)
            return
        seen, complete = 0, False

        async def bounded() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()  # waits until the client disconnects
            left = self._config.body_s - (time.monotonic() - started)
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except asyncio.TimeoutError as error:
                raise HTTPException(408, f"the body took more than {self._config.body_s:g} seconds") from error
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, too_large)
            complete = not message.get("more_body", False)
            return message

        async def adorned(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self._app(scope, bounded, adorned)


def _query(scope: Scope) -> str:
    text: str = scope["query_string"].decode("latin-1")
    return text


def _wants_page(scope: Scope) -> bool:
    """Whether a person opened the address in a browser; programs and scripts do not ask for HTML."""
    accepted = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept")
    return scope["method"] == "GET" and b"text/html" in accepted.lower()


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": sentence})  # before accepting: HTTP 403
        return
    body, kind = json.dumps({"detail": sentence}).encode(), b"application/json"
    if status == 401 and _wants_page(scope):
        body, kind = TOKEN_PAGE.encode(), b"text/html; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (401, 408, 413):  # a client without a token holds no connection; the rest of a body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _enter(scope: Scope, send: Send, token: str) -> None:
    """Move the token from the address to a cookie, so that it is not visible; the rest of the query stays.

    Lax, because a browser does not send a strict cookie when a link on another site is followed. Requests of other
    sites that change something carry no lax cookie either, and are refused by their `Origin`.
    """
    rest = [(name, value) for name, value in parse_qsl(_query(scope), keep_blank_values=True) if name != "token"]
    location = "/?" + urlencode(rest) if rest else "/"
    cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Lax; Path=/"
    headers = [
        (b"location", location.encode()),
        (b"set-cookie", cookie.encode()),
        (b"content-length", b"0"),
        *HEADERS,
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
