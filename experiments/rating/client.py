"""What a page of a study says to its server, for programs."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from experiments.files import UserError


class Client:
    """One rater's connection. Raises UserError for a reply that is not the one it needs."""

    def __init__(self, url: str, token: str):
        self.origin = url
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        status, headers, _ = self.ask("GET", f"/join/{token}")
        if status != 303:
            raise UserError(f"{url}: {status} for a link")
        self.cookie = headers["set-cookie"].partition(";")[0]

    def ask(self, method: str, path: str, told: dict[str, Any] | None = None) -> tuple[int, dict[str, str], bytes]:
        """Returns status, headers and body of a reply, whatever it is."""
        headers = {"cookie": getattr(self, "cookie", "")}
        if told is not None:
            headers |= {"content-type": "application/json", "origin": self.origin}
        self.connection.request(method, path, None if told is None else json.dumps(told), headers)
        reply = self.connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    def json(self, method: str, path: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        status, _, body = self.ask(method, path, told)
        if status != 200:
            raise UserError(f"{self.origin}{path}: {status} {body[:200]!r}")
        return json.loads(body)

    def state(self) -> dict[str, Any]:
        return self.json("GET", "/state")

    def consent(self) -> None:
        self.json("POST", "/consent", {"consent": True, "pointer": "fine", "width": 1280})

    def trial(self, position: int) -> dict[str, Any]:
        return self.json("GET", f"/trial/{position}")

    def picture(self, name: str) -> bytes:
        status, _, body = self.ask("GET", f"/pictures/{name}.png")
        if status != 200:
            raise UserError(f"{self.origin}: {status} for a picture")
        return body

    def answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns what is stored."""
        return self.json("POST", "/answer", row)["stored"]
