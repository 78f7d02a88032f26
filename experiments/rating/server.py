"""The server of a study's pages: one process, on this machine unless asked otherwise, that serves nothing but them.

Whoever asks is somebody only by the cookie that their link sets. A picture is looked up among the study's names, no
path is ever made of what was asked, and no reply or log names a method, a role, a file or who asked.
"""

import asyncio
import ipaddress
import json
import re
import socket
import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.files import UserError, as_user_error
from experiments.rating.store import CONSENTED, Rater, Store, answer_of
from experiments.rating.study import Study

PAGE = Path(__file__).parent / "page"
LARGEST_BODY, SLOWEST_BODY = 4096, 10.0  # bytes, seconds
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Headers:
    """Sets the same headers on every reply."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.app(scope, receive, sending)


class Refused(Exception):
    """A request that gets a status and a word instead of what it asked for."""

    def __init__(self, status: int, word: str, **more: Any):
        self.status, self.body = status, {"error": word, **more}


@dataclass
class Rate:
    """At most so many answers within any second, by rater."""

    most: int = 5
    clock: Callable[[], float] = time.monotonic
    times: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, slot: int) -> None:
        with self.lock:
            now, times = self.clock(), self.times[slot]
            while times and now - times[0] >= 1:
                times.popleft()
            if len(times) >= self.most:
                raise Refused(429, "too many answers")
            times.append(now)


@dataclass(frozen=True)
class Address:
    """Where the server listens, and what raters type."""

    host: str
    port: int
    url: str

    @property
    def secure(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def origins(self) -> set[str]:
        local = {origin_of(f"http://{host}:{self.port}") for host in ("127.0.0.1", "localhost")}
        return {origin_of(self.url)} | (local if is_loopback(self.host) else set())

    @property
    def hosts(self) -> list[str]:
        return sorted({urlsplit(origin).hostname or "" for origin in self.origins})


def origin_of(url: str) -> str:
    """Returns the origin of an address as browsers tell it: in small letters, without the scheme's own port."""
    told = urlsplit(url)
    host = f"[{told.hostname}]" if ":" in (told.hostname or "") else told.hostname
    own = told.port in (None, {"http": 80, "https": 443}[told.scheme])
    return f"{told.scheme}://{host}" + ("" if own else f":{told.port}")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int, public: bool, url: str | None) -> Address:
    """Raises UserError for a host that others reach unless `public`, and for an address that nobody can type."""
    if not is_loopback(host) and not public:
        raise UserError(f"host={host}: others could reach it; public=true allows that")
    url = f"http://{host}:{port}" if url is None else url.rstrip("/")
    wrong = f"url={url}: must be the address that raters type, like https://study.example.org"
    with as_user_error(f"{wrong}: "):
        told = urlsplit(url)
        if told.scheme not in ("http", "https") or told.path or told.hostname in (None, "", "0.0.0.0", "::"):
            raise UserError(wrong)
        origin_of(url)  # raises for a port that is none
    return Address(host, port, url)


class Replies:
    """What the server says to each request: to whoever the cookie says it is."""

    def __init__(self, folder: Path, study: Study, store: Store, where: Address, rate: Rate):
        self.study, self.store, self.where, self.rate = study, store, where, rate
        self.cookie = f"rater_{store.name[:12]}"  # one is of a host whatever the port, which may serve several studies
        shown = [picture for item in study.items for picture in item.shows.values() if picture]
        self.pictures = {f"{picture}.png": folder / "pictures" / f"{picture}.png" for picture in shown}
        self.files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in TYPES}

    def who(self, request: Request) -> Rater:
        rater = self.store.rater_of(request.cookies.get(self.cookie, ""))
        if rater is None:
            raise Refused(403, "no link of this study")
        return rater

    def consenting(self, request: Request) -> Rater:
        rater = self.who(request)
        if rater.consent != CONSENTED:
            raise Refused(403, "no consent yet")
        return rater

    def join(self, request: Request) -> Response:
        token = request.path_params["token"]
        if self.store.rater_of(token) is None:
            raise Refused(404, "not found")
        reply, secure = RedirectResponse("/", status_code=303), self.where.secure
        reply.set_cookie(self.cookie, token, max_age=180 * 86400, httponly=True, samesite="strict", secure=secure)
        return reply

    def file(self, request: Request) -> Response:
        name = request.path_params.get("file", "index.html")
        if name not in self.files:
            raise Refused(404, "not found")
        return Response(self.files[name], media_type=TYPES[Path(name).suffix])

    def picture(self, request: Request) -> Response:
        self.who(request)
        path = self.pictures.get(request.path_params["name"])
        if path is None:
            raise Refused(404, "not found")
        return Response(path.read_bytes(), media_type="image/png")

    def state(self, request: Request) -> Response:
        rater = self.who(request)
        told = {"study": self.store.name, "slot": rater.slot, "consent": rater.consent == CONSENTED}
        return JSONResponse({**self.study.intro(rater.slot), **told, "next": self.store.next(rater.slot)})

    def trial(self, request: Request) -> Response:
        rater, asked = self.consenting(request), request.path_params["position"]
        position = int(asked) if re.fullmatch("[0-9]{1,9}", asked) else -1  # Starlette's own conversion may raise
        due = min(self.store.next(rater.slot) + 1, len(self.study.slots[rater.slot - 1].plan) - 1)
        if not 0 <= position <= due:
            raise Refused(404, "not found")
        given = self.store.value_at(rater.slot, position)
        return JSONResponse({**self.study.trial(rater.slot, position), "given": given})

    async def consent(self, request: Request) -> Response:
        return await run_in_threadpool(self.agree, request, await body(request, self.where.origins))

    def agree(self, request: Request, told: dict[str, Any]) -> Response:
        rater, pointer, width = self.who(request), told.get("pointer"), told.get("width")
        if told.get("consent") is not True or pointer not in ("fine", "coarse") or type(width) is not int:
            raise Refused(400, "not a consent")
        self.store.consent(rater.slot, device(pointer, width))
        return JSONResponse({"consent": True})

    async def answer(self, request: Request) -> Response:
        return await run_in_threadpool(self.keep, request, await body(request, self.where.origins))

    def keep(self, request: Request, told: dict[str, Any]) -> Response:
        rater = self.consenting(request)
        self.rate.take(rater.slot)
        if told.get("slot") != rater.slot:
            raise Refused(403, "of another rater")
        try:
            row = answer_of(told, self.study, rater.slot)
        except ValueError as error:
            raise Refused(400, "not an answer") from error
        try:
            given = self.store.add(row)
        except ValueError as error:
            raise Refused(409, "not due", next=self.store.next(rater.slot)) from error
        stored = {key: getattr(given, key) for key in ("nonce", "position", "value", "active_ms", "total_ms", "seq")}
        return JSONResponse({"stored": stored})


def app(folder: Path, study: Study, store: Store, where: Address, rate: Rate) -> Starlette:
    """Makes the application."""
    replies = Replies(folder, study, store, where, rate)
    routes = [
        Route("/", replies.file),
        Route("/join/{token}", replies.join),
        Route("/pictures/{name}", replies.picture),
        Route("/state", replies.state),
        Route("/trial/{position}", replies.trial),
        Route("/consent", replies.consent, methods=["POST"]),
        Route("/answer", replies.answer, methods=["POST"]),
        Route("/{file}", replies.file),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=where.hosts, www_redirect=False)
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Refused: refused,
        sqlite3.Error: unstored,
        OSError: unstored,
    }
    made = Starlette(routes=routes, middleware=[Middleware(Headers), hosts], exception_handlers=handlers)
    made.router.redirect_slashes = False
    return made


async def refused(request: Request, error: Refused) -> Response:
    return JSONResponse(error.body, status_code=error.status)


async def unstored(request: Request, error: Exception) -> Response:
    """A full disk, or a picture that is gone: the page tries again."""
    return JSONResponse({"error": "not now"}, status_code=503)


async def body(request: Request, origins: set[str]) -> dict[str, Any]:
    """Returns the JSON object of a request. Raises Refused unless a page of this server sent it, small and soon."""
    if request.headers.get("origin") not in origins:
        raise Refused(403, "of another origin")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "not JSON")
    content = b""
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_BODY:
                    raise Refused(413, "too large")
        told = json.loads(content)
    except TimeoutError as error:
        raise Refused(408, "too slow") from error
    except (ValueError, RecursionError, ClientDisconnect) as error:
        raise Refused(400, "not JSON") from error
    if not isinstance(told, dict):
        raise Refused(400, "not an object")
    return told


def device(pointer: str, width: int) -> str:
    """Returns what is stored of a rater's device."""
    return f"{pointer} {min(max(width // 100 * 100, 0), 9900)}"


def listening(where: Address) -> socket.socket:
    """Returns a socket bound to the address. Raises OSError, in one line, if it is taken."""
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((where.host, where.port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise OSError(f"host={where.host} port={where.port}: {error.strerror}: choose another port") from error
    return found


def server(application: Starlette) -> uvicorn.Server:
    """A server that writes no log of requests."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_level="warning",
            limit_concurrency=512,
            timeout_keep_alive=20,
        )
    )
