"""Answers on their way: the server by its test client, the store, the static folder, and what a stranger could try."""

import asyncio
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from kit import items_of, stored
from PIL import Image
from starlette.testclient import TestClient
from tiny import Outcome

from experiments.rating import bots, server, static
from experiments.rating.export import export, lines
from experiments.rating.make import clean
from experiments.rating.store import Answer, Store
from experiments.rating.study import open_study

HERE = server.address("127.0.0.1", 8000, False, None)


def stranger(folder: Path, store: Store, where: server.Address = HERE, rate: server.Rate | None = None) -> TestClient:
    """A browser that followed no link."""
    made = server.app(folder, store.study, store, where, rate or server.Rate(10**6))
    return TestClient(made, base_url=where.url, follow_redirects=False, headers={"origin": where.url})


def client(folder: Path, store: Store, slot: int = 1, consent: bool = True, rate: Any = None) -> TestClient:
    """A browser that followed the slot's link."""
    found = stranger(folder, store, rate=rate)
    assert found.get(f"/join/{store.new_tokens([slot])[slot]}").status_code == 303
    if consent:
        assert found.post("/consent", json={"consent": True, "pointer": "fine", "width": 1234}).status_code == 200
    return found


def row(position: int, value: int = 1, nonce: int = 0, **more: Any) -> dict[str, Any]:
    told = {"position": position, "value": value, "active_ms": 900, "total_ms": 1000, "slot": 1}
    return {"nonce": f"{nonce or position + 1:032x}", **told, **more}


@pytest.fixture
def browser(pairs: Path, pair_store: Store) -> TestClient:
    return client(pairs, pair_store)


def test_a_link_becomes_a_cookie_that_scripts_cannot_read(pairs: Path, pair_store: Store) -> None:
    browser = client(pairs, pair_store, consent=False)
    reply = browser.get(f"/join/{pair_store.new_tokens([2])[2]}")
    assert reply.headers["location"] == "/"
    cookie = reply.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
    assert "secure" not in cookie
    public = server.address("0.0.0.0", 8000, True, "https://study.example.org")
    reply = stranger(pairs, pair_store, public).get(f"/join/{pair_store.new_tokens([3])[3]}")
    assert "secure" in reply.headers["set-cookie"].lower()
    held = pair_store.path.read_bytes() + Path(f"{pair_store.path}-wal").read_bytes()
    assert cookie.partition("=")[2].partition(";")[0].encode() not in held  # its hash alone is kept


def test_an_answer_is_acknowledged_with_what_is_stored(browser: TestClient, pair_store: Store) -> None:
    assert browser.get("/state").json()["next"] == 0
    first = browser.post("/answer", json=row(0, 2)).json()["stored"]
    assert first == {"nonce": f"{1:032x}", "position": 0, "value": 2, "active_ms": 900, "total_ms": 1000, "seq": 1}
    assert browser.post("/answer", json=row(0, 5)).json()["stored"] == first  # the same nonce: nothing changes
    assert pair_store.value_at(1, 0) == 2
    assert browser.post("/answer", json=row(0, 5, nonce=77)).json()["stored"]["seq"] == 2  # a correction counts
    assert browser.get("/trial/0").json()["given"] == 5
    assert browser.get("/state").json()["next"] == 1
    assert pair_store.count() == 2
    assert [answer.value for answer in pair_store.counted()] == [5]


def test_the_same_trial_comes_back_to_a_second_tab_and_after_a_restart(pairs: Path, pair_store: Store) -> None:
    browser = client(pairs, pair_store)
    for position in range(4):
        browser.post("/answer", json=row(position))
    shown = browser.get("/trial/4").json()
    assert browser.get("/trial/4").json() == shown
    pair_store.close()
    again = client(pairs, stored(pairs, pair_store.path))
    assert again.get("/state").json()["next"] == 4
    assert again.get("/trial/4").json() == shown
    study = pair_store.study
    item, names = study.at(1, 4)
    assert shown["pictures"] == [item.shows[name] for name in names]


def test_nothing_is_told_before_its_turn(pairs: Path, pair_store: Store) -> None:
    unknown = stranger(pairs, pair_store)
    picture = next(iter(pair_store.study.items[0].shows.values()))
    for path in ("/state", "/trial/0", f"/pictures/{picture}.png"):
        assert unknown.get(path).status_code == 403
    assert unknown.post("/answer", json=row(0)).status_code == 403
    assert unknown.get("/join/guess").status_code == 404
    browser = client(pairs, pair_store, consent=False)
    assert browser.get("/trial/0").status_code == 403
    assert browser.post("/answer", json=row(0)).status_code == 403
    for wrong in ({"consent": False, "pointer": "fine", "width": 9}, {"consent": True, "pointer": "x", "width": 9}, {}):
        assert browser.post("/consent", json=wrong).status_code == 400
    assert browser.post("/consent", json={"consent": True, "pointer": "coarse", "width": 399}).status_code == 200
    assert pair_store.raters()[0].device == "coarse 300"
    assert [browser.get(f"/trial/{position}").status_code for position in (0, 1, 2, 10**9)] == [200, 200, 404, 404]


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (row(1), 409),
        (row(0, 6), 409),
        (row(0, 0), 409),
        (row(0, slot=2), 403),
        (row(0, nonce=0) | {"nonce": "x" * 32}, 400),
        (row(0) | {"value": True}, 400),
        (row(0) | {"value": "1"}, 400),
        (row(0) | {"position": -1}, 400),
        (row(0) | {"position": 10**6}, 400),
        (row(0) | {"total_ms": 10**12}, 400),
        (row(0) | {"active_ms": None}, 400),
        ([1], 400),
    ],
)
def test_what_is_no_answer_is_not_stored(told: Any, status: int, browser: TestClient, pair_store: Store) -> None:
    assert browser.post("/answer", json=told).status_code == status
    assert pair_store.count() == 0


def test_limits(pairs: Path, pair_store: Store) -> None:
    now = [0.0]
    browser = client(pairs, pair_store, rate=server.Rate(clock=lambda: now[0]))
    big = json.dumps(row(0) | {"more": "x" * 5000})
    sent = {"content-type": "application/json"}
    assert browser.post("/answer", content=big, headers=sent).status_code == 413
    assert browser.post("/answer", content=iter([big.encode()] * 10), headers=sent).status_code == 413
    assert browser.post("/answer", content="{", headers=sent).status_code == 400
    assert browser.post("/answer", content="[" * 4000, headers=sent).status_code == 400
    assert browser.post("/answer", content="{}", headers={"content-type": "text/plain"}).status_code == 415
    assert browser.post("/answer", json=row(0), headers={"origin": "https://evil.example"}).status_code == 403
    assert browser.post("/answer", json=row(0), headers={"origin": "null"}).status_code == 403
    assert browser.get("/", headers={"host": "evil.example"}).status_code == 400
    assert pair_store.count() == 0
    assert [browser.post("/answer", json=row(i)).status_code for i in range(6)] == [200] * 5 + [429]
    assert pair_store.count() == 5
    now[0] = 0.999
    assert browser.post("/answer", json=row(5)).status_code == 429
    now[0] = 1.0
    assert browser.post("/answer", json=row(5)).status_code == 200


def crafted() -> Iterator[str]:
    up = ["..", "%2e%2e", "..%2f", "%2e%2e%2f", "..%5c", "....//", "%252e%252e%252f", "..;", "%c0%ae%c0%ae/", "%00"]
    names = ["study.json", "key.json", "answers.sqlite", "etc/passwd", "pictures"]
    for start in ("pictures/", "join/", ""):
        for rise in up:
            for name in names[:3] if start != "pictures/" else names:
                yield f"/{start}{rise}/{name}"
    yield from ("/pictures/", "/pictures//etc/passwd", "/pictures/%2fetc%2fpasswd", "/join/", f"/join/{'a' * 8000}")
    yield from (
        "/trial/-1",
        "/trial/x",
        "/trial/1.5",
        f"/trial/{'9' * 5000}",
        "/trial/0/..",
        "/page/app.js",
        "/app.js/..",
    )


def raw(browser: TestClient, path: str, cookie: str) -> tuple[int, bytes]:
    """Status and body for a path that no client has tidied, unquoted as uvicorn does."""
    headers = [(b"host", b"127.0.0.1:8000"), (b"cookie", cookie.encode("latin-1"))]
    scope = {"type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http", "root_path": "", "headers": headers}
    sent = list[Any]()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(browser.app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_crafted_paths_lead_nowhere(browser: TestClient) -> None:
    ((name, token),) = browser.cookies.items()
    cookie = f"{name}={token}"
    assert raw(browser, "/state", cookie)[0] == 200
    paths = list(crafted())
    assert len(paths) >= 100
    for path in paths:
        status, content = raw(browser, path, cookie)
        assert status == 404, path
        assert b"Traceback" not in content
    for file in ("study.json", "key.json", "server.py", "index.html.j2", "study.js"):
        assert raw(browser, f"/{file}", cookie)[0] == 404
    for wrong in ("", "x", "'; drop table answer; --", "\x7f", "\xff", "a" * 4000):
        assert raw(browser, "/state", f"{name}={wrong}")[0] == 403


def test_every_reply_forbids_what_pages_do_not_need(browser: TestClient) -> None:
    for reply in (browser.get("/"), browser.get("/state"), browser.get("/nothing"), browser.post("/answer", json={})):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"
        assert not {"server", "etag", "last-modified"} & reply.headers.keys()
    assert browser.get("/").text.count("<script") == browser.get("/").text.count("<script src=")
    assert "style=" not in browser.get("/").text


def test_a_full_disk_is_no_acknowledgement(
    browser: TestClient, pair_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(answer: Answer) -> Answer:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(pair_store, "insert", full)
    assert browser.post("/answer", json=row(0)).status_code == 503
    monkeypatch.undo()
    assert browser.post("/answer", json=row(0)).status_code == 200


class Listening:
    """A rater's connection of the test client that keeps all that came back."""

    def __init__(self, browser: TestClient):
        self.browser, self.heard = browser, list[tuple[str, str, bytes]]()

    def ask(self, method: str, path: str, told: dict | None = None) -> Any:
        reply = self.browser.request(method, path, **({} if told is None else {"json": told}))
        self.heard.append((path, str(reply.headers.raw), reply.content))
        return reply

    def state(self) -> dict:
        return self.ask("GET", "/state").json()

    def consent(self) -> None:
        self.ask("POST", "/consent", {"consent": True, "pointer": "fine", "width": 1280})

    def trial(self, position: int) -> dict:
        return self.ask("GET", f"/trial/{position}").json()

    def picture(self, name: str) -> bytes:
        return self.ask("GET", f"/pictures/{name}.png").content

    def answer(self, told: dict) -> dict:
        return self.ask("POST", "/answer", told).json()["stored"]


@pytest.fixture(scope="module")
def answered(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[tuple[str, str, bytes]]]:
    """A whole study answered by bots, and all that the server said."""
    store = stored(pairs, tmp_path_factory.mktemp("answered") / "answers.sqlite", simulated=True)
    heard = []
    for slot in store.study.slots:
        listening = Listening(client(pairs, store, slot.slot, consent=False))
        for path in ("/", "/app.js", "/style.css", "/icon.svg"):
            listening.ask("GET", path)
        bots.answer(store.study, listening, bots.Bot(bots.Taste(), 2, 0, slot.slot), 0.45, 0)
        heard += listening.heard
    return store, heard


def test_no_reply_tells_methods_files_or_roles(answered: tuple, pairs: Path, runs: Path) -> None:
    store, heard = answered
    key = json.loads((pairs / "key.json").read_text())
    secret = {"plain_run", "new_run", str(runs), str(pairs), "key.json", "ldm-guidance", "tEXt"}
    secret |= {told[name] for told in key["pictures"].values() for name in ("sha256", "file", "run")}
    assert len(heard) > 200
    for path, headers, content in heard:
        text = content.decode("latin-1")
        assert not [word for word in secret if word in text or word in headers or word in path], path
        if path.startswith(("/state", "/trial", "/answer")):
            roles = re.findall(r'"(gold|repeat|same|practice|main|good|bad|first|second|role|item|of)"', text)
            assert set(roles) <= {"practice"}, path  # how many trials of practice there are, which raters see
        if path.startswith("/pictures/"):
            assert clean(Image.open(io.BytesIO(content))) == content
    asked = [path for path, _, _ in heard if path.startswith("/pictures/")]
    trials = sum(len(slot.plan) for slot in store.study.slots)
    assert len(asked) == 2 * trials
    per_rater = [name for item in store.study.items for name in item.shows.values()]
    assert len(set(per_rater)) == len(per_rater)  # no name comes twice, so that none tells a repeat


def test_the_export_turns_answers_towards_the_first(answered: tuple, tmp_path: Path) -> None:
    store, _ = answered
    found = list(lines(store))
    study = store.study
    assert len(found) == sum(len(slot.plan) - 3 for slot in study.slots)
    for line in found:
        assert line["simulated"] is True
        item, shown = study.at(line["slot"], line["position"])
        assert line["shown"] == list(shown)
        assert line["turned"] == (3 - line["value"]) * (1 if shown[0] in ("first", "good", "same") else -1)
        assert (line["passed"] is None) == (item.role != "gold")
        assert not line.keys() & {"day", "nonce", "token_hash"}
    written = export(store, tmp_path).read_text()
    assert [json.loads(line) for line in written.splitlines()] == found
    assert "2026" not in written


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://Study.Example.org:443/", "https://study.example.org"),
        ("http://study.example.org:80", "http://study.example.org"),
        ("http://study.example.org:8080", "http://study.example.org:8080"),
        ("http://[2001:DB8::1]:8080", "http://[2001:db8::1]:8080"),
    ],
)
def test_an_origin_is_as_browsers_tell_it(url: str, told: str) -> None:
    assert told in server.address("0.0.0.0", 8000, True, url).origins


def files_of(store: Store, slots: list[int]) -> dict[int, dict]:
    """What the static page saves for the same bots."""
    study, found = store.study, {}
    for slot in slots:
        bot, answers = bots.Bot(bots.Taste(), 2, 0, slot), []
        for made in bots.rows(study, slot, bot, 0.45, 0, lambda _: []):
            answers.append({k: made[k] for k in ("nonce", "position", "value", "active_ms", "total_ms")})
            answers[-1]["day"] = "2001-02-03"
        told = {"study": store.name, "slot": slot, "consent": "given", "device": "fine 1200", "answers": answers}
        found[slot] = told
    return found


def test_the_static_folder_brings_the_same_bytes(answered: tuple, pairs: Path, tmp_path: Path) -> None:
    store, _ = answered
    slots = [slot.slot for slot in store.study.slots]
    paths = []
    for slot, told in files_of(store, slots).items():
        paths.append(tmp_path / f"answers_{slot}.json")
        paths[-1].write_text(json.dumps(told))
    other = stored(pairs, tmp_path / "answers.sqlite", simulated=True)
    half = json.loads(paths[0].read_text())
    (tmp_path / "half.json").write_text(json.dumps(half | {"answers": half["answers"][:5]}))
    total = sum(len(slot.plan) for slot in store.study.slots)
    assert static.merge(other, [tmp_path / "half.json"]) == (5, 0)
    assert static.merge(other, paths) == (total - 5, 5)
    assert static.merge(other, paths) == (0, total)
    wrong = json.loads(paths[1].read_text()) | {"slot": 1}  # another rater mistypes the number
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    before = other.rows("select * from answer order by slot, seq")
    with pytest.raises(ValueError, match=r"wrong.json: is of rater 1, who has \d+ answers already, none of them in it"):
        static.merge(other, [tmp_path / "wrong.json"])
    assert other.rows("select * from answer order by slot, seq") == before
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    assert export(other, tmp_path / "here").read_bytes() == export(store, tmp_path / "there").read_bytes()


def test_the_static_folder_tells_no_more_than_the_server(pairs: Path, runs: Path, tmp_path: Path) -> None:
    study, name = open_study(pairs)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "pictures").symlink_to(pairs / "pictures")
    out = static.write(tmp_path / "study", study, name)
    assert static.write(tmp_path / "study", study, name) == out
    text = (out / "study.js").read_text()
    told = json.loads(text.removeprefix("window.STUDY = ").removesuffix(";\n"))
    assert told["slots"]["1"]["trials"][0] == json.loads(json.dumps(study.trial(1, 0)))
    assert not re.findall(r'"(gold|repeat|same|main|good|bad|first|second|role|item|of)"', text)
    assert not any(word in text for word in ("plain_run", "new_run", str(runs)))
    assert {path.name for path in out.iterdir()} == {
        "index.html", "app.js", "style.css", "icon.svg", "study.js", "pictures"
    }  # fmt: skip
    assert {path.stat().st_mtime for path in out.rglob("*")} == {static.DAY}
    assert "http" not in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"study": "0" * 64}, "is of study 000000000000, not of"),
        ({"slot": 99}, "whom the study does not have"),
        ({"answers": [row(3)]}, "is not due"),
        ({"answers": [row(0, 9)]}, "no answer to item"),
        ({"answers": [row(0) | {"position": "0"}]}, "whole numbers"),
        ({"answers": [row(0) | {"day": "today"}]}, "must be like"),
        ({"answers": 7}, "no file that the page saved"),
        ({"device": "fine"}, "device 'fine': must be like"),
        ({"study": None}, "no file that the page saved"),
    ],
)
def test_a_wrong_file_stores_nothing(change: dict, word: str, pair_store: Store, tmp_path: Path) -> None:
    told = {"study": pair_store.name, "slot": 1, "consent": "given", "device": "", "answers": [row(0)]} | change
    (tmp_path / "file.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=word) as error:
        static.merge(pair_store, [tmp_path / "file.json"])
    assert "\n" not in str(error.value)
    assert pair_store.count() == 0
    assert {rater.consent for rater in pair_store.raters()} == {None}


def test_withdrawing_leaves_no_trace(browser: TestClient, pairs: Path, pair_store: Store, tmp_path: Path) -> None:
    other = client(pairs, pair_store, slot=2)
    for position in range(4):
        browser.post("/answer", json=row(position, nonce=0xABCDEF01 + position))
        other.post("/answer", json=row(position, nonce=500 + position, slot=2))
    nonce = f"{0xABCDEF01:032x}".encode()

    def held() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.glob("answers.sqlite*"))

    assert nonce in held()
    assert pair_store.withdraw([1]) == 4
    assert nonce not in held()
    assert {answer.slot for answer in pair_store.counted()} == {2}
    assert browser.get("/state").status_code == 403
    assert 1 not in pair_store.new_tokens()
    told = {"study": pair_store.name, "slot": 1, "consent": "given", "device": "", "answers": [row(0)]}
    (tmp_path / "back.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="who withdrew"):
        static.merge(pair_store, [tmp_path / "back.json"])
    with pytest.raises(ValueError, match="there is no rater 99"):
        pair_store.withdraw([99])


def test_the_verb_from_links_to_withdrawal(
    raters: Callable[..., Outcome], make_study: Callable, tmp_path: Path
) -> None:
    folder = make_study("kind=preference", "groups={public: 2}")
    where = f"study={folder}"
    told = raters("action=links", where, "url=https://study.example.org")
    assert told.out.splitlines()[0] == "rater,group,link"
    assert re.fullmatch(r"1,public,https://study\.example\.org/join/[\w-]{22}", told.out.splitlines()[1])
    assert len(told.out.splitlines()) == 3
    assert len(raters("action=links", where).out.splitlines()) == 1  # they are told once
    assert len(raters("action=links", where, "renew=[2]").out.splitlines()) == 2
    store = stored(folder, folder / "answers.sqlite")
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    for path, made in zip(files, files_of(store, [1, 2]).values(), strict=True):
        path.write_text(json.dumps(made))
    merged = raters("action=import", where, f"from=[{files[0]},{files[1]}]")
    assert "are new, 0 were there already" in merged.out, merged.err
    assert raters("action=export", where).out.strip() == str(folder / "answers.jsonl")
    before = (folder / "answers.jsonl").read_text()
    assert '"simulated": false' in before
    assert "given" in raters("action=status", where).out
    assert raters("action=analyse", where).status == 0
    assert (folder / "analysis.html").exists()
    store.close()
    gone = raters("action=withdraw", where, "slots=[2]")
    assert "answers are deleted" in gone.out, gone.err
    assert not list(folder.glob("analysis.*"))
    assert (folder / "answers.jsonl").read_text() == "".join(
        line for line in before.splitlines(keepends=True) if '"slot": 1,' in line
    )
    assert raters("action=static", where).status == 0
    told = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(told | {"title": "Another"}))
    for action in ("links", "serve", "status", "export", "analyse", "withdraw"):
        outcome = raters(f"action={action}", where)
        assert outcome.status == 1
        assert "a study never changes" in outcome.err
        assert outcome.err.count("\n") == 1


def test_what_keeps_a_server_from_starting_is_one_line(raters: Callable[..., Outcome], pairs: Path) -> None:
    with server.listening(server.address("127.0.0.1", 0, False, None)) as taken:
        port = taken.getsockname()[1]
        for overrides, word in [
            ([f"port={port}"], "choose another port"),
            (["port=x"], "port=x"),
            (["host=0.0.0.0"], "public=true allows that"),
            (["host=0.0.0.0", "public=true"], "must be the address that raters type"),
            (["url=ftp://x"], "must be the address"),
            (["url='http://[::1'"], "must be the address"),
            (["url=http://x:99999"], "must be the address"),
        ]:
            outcome = raters("action=serve", f"study={pairs}", *overrides)
            assert outcome.status == 1
            assert word in outcome.err
            assert outcome.err.count("\n") == 1


def test_bots_and_people_never_mix(pairs: Path, pair_store: Store) -> None:
    pair_store.close()
    with pytest.raises(ValueError, match="answers of people, which never mix"):
        stored(pairs, pair_store.path, simulated=True)
    pair_store.path.write_bytes(b"not a database, but long enough to be looked at as if it were one" * 99)
    for more in ("-wal", "-shm"):
        Path(f"{pair_store.path}{more}").unlink(missing_ok=True)
    with pytest.raises(OSError, match="file is not a database"):
        stored(pairs, pair_store.path)


def test_the_judge_rates_what_it_sees(pairs: Path) -> None:
    study, _ = open_study(pairs)
    item, names = study.at(1, items_of(study, 1)[0][0] * 0 + 3)
    pictures = [(pairs / "pictures" / f"{item.shows[name]}.png").read_bytes() for name in names]
    judge = bots.Judge()
    found = judge.finds(item, names, pictures)
    assert found == [judge.finds(item, names, pictures[::-1])[1], judge.finds(item, names, pictures[::-1])[0]]
    assert bots.value_of(study, item, names, [9, 0], 0.45) == 1  # what is left is much better
    assert bots.value_of(study, item, names, [0, 1], 0.45) == 4
    assert bots.value_of(study, item, names, [0, 0.1], 0.45) == 3
