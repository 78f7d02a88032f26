"""The pages in a headless Chromium, from the link to the end: on a desk, on a phone, by keys alone, from a folder."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import MakeStudy, stored

from experiments.rating import bots, static
from experiments.rating.export import export
from experiments.rating.study import open_study

pytestmark = pytest.mark.browser
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 320, "height": 640}
FEW = ["groups={all: 2}", "practice=1", "gold=1", "repeats=1", "same=1", "break_after=6"]
CONTRAST = """() => {
  const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const c = numbers(getComputedStyle(node).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const told = [...document.querySelectorAll("p, h1, h2, button, label, figcaption, kbd")].filter((n) => n.textContent);
  return Math.min(...told.map((n) => {
    const [a, b] = [light(numbers(getComputedStyle(n).color).slice(0, 3)), light(behind(n))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    sync = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # for root
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """tab(DESK) is a page of a browser of its own; at the end nothing may have gone wrong in any."""
    contexts, wrong = [], []

    def watched(page: Any) -> None:
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda reply: wrong.append(f"{reply.status} {reply.url}") if reply.status >= 400 else None)
        page.on("request", lambda request: None if local(request.url) else wrong.append(request.url))

    def made(size: dict, **more: Any) -> Any:
        contexts.append(chromium.new_context(viewport=size, has_touch=size is PHONE, is_mobile=size is PHONE, **more))
        contexts[-1].on("page", watched)
        return contexts[-1].new_page()

    yield made
    for context in contexts:
        context.close()
    assert wrong == []


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "file:", "blob:"))


def answer_by(page: Any, press: Callable[[Any, int], None], value: Callable[[int], int]) -> int:
    """Answers everything, breaks too; returns how many answers were given."""
    given = 0
    while True:
        page.wait_for_selector(".answers button:not([disabled]), .text")
        if page.get_by_role("heading", name="Thank you").count():
            return given
        if page.locator(".answers").count():
            shown = page.locator("#progress").inner_text()
            page.wait_for_timeout(310)
            press(page, value(given))
            given += 1
            until(page, other_than=shown)
        else:
            page.get_by_role("button").first.press("Enter")
            page.wait_for_selector(".answers button:not([disabled])")


def until(page: Any, begins: str = "", other_than: str | None = None) -> None:
    """Waits for what the progress line says; Playwright's own waiting needs an eval, which the pages forbid."""
    for _ in range(3000):
        now = page.locator("#progress").inner_text()
        if now.startswith(begins) and now != other_than:
            return
        page.wait_for_timeout(10)
    raise AssertionError(now)


def by_key(page: Any, value: int) -> None:
    page.keyboard.press(str(value))


def by_tap(page: Any, value: int) -> None:
    page.locator(".answers button").nth(value - 1).tap()


KINDS = {
    "preference": ["kind=preference"],
    "grade": ["kind=grade", "subset={few}"],
    "choice": ["kind=choice"],
    "poll": ["kind=poll", "runs=[]", "kind.questions=[{name: a, text: What is art?, options: [x, y, z]}]"],
}


def study_of(kind: str, make_study: MakeStudy, tmp_path: Path) -> Path:
    (tmp_path / "few.jsonl").write_text('{"prompt": "a dragon"}\n{"prompt": "a pear"}\n{"prompt": "a heart"}\n')
    told = [word.format(few=tmp_path / "few.jsonl") if "{few}" in word else word for word in KINDS[kind]]
    return make_study(*told, *FEW, methods={"choice": 4, "poll": 0}.get(kind, 2))


@pytest.mark.parametrize("kind", list(KINDS))
def test_by_keys_alone_on_a_desk(kind: str, tab: Callable, make_study: MakeStudy, tmp_path: Path) -> None:
    folder = study_of(kind, make_study, tmp_path)
    store = stored(folder, tmp_path / "answers.sqlite")
    with bots.serving(folder, store.study, store) as where:
        page = tab(DESK)
        page.goto(f"{where.url}/join/{store.new_tokens()[1]}")
        assert page.url == f"{where.url}/"  # the token has left the address bar
        page.wait_for_selector("#consent")
        assert page.evaluate(CONTRAST) >= 4.5
        for key in ("Tab", "Space", "Tab", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector("text=How to answer")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.wait_for_selector(".answers")
        assert page.evaluate(CONTRAST) >= 4.5
        assert page.evaluate("document.documentElement.scrollWidth") <= DESK["width"]
        page.screenshot(path=tmp_path / f"{kind}.png")
        given = answer_by(page, by_key, lambda i: 1 + i % 3)
    assert given == len(store.study.slots[0].plan) == store.count()
    assert [answer.value for answer in store.counted()] == [1 + i % 3 for i in range(given)]
    assert store.raters()[0].device == "fine 1200"


@pytest.mark.parametrize("kind", list(KINDS))
def test_by_touch_on_a_phone(kind: str, tab: Callable, make_study: MakeStudy, tmp_path: Path) -> None:
    folder = study_of(kind, make_study, tmp_path)
    store = stored(folder, tmp_path / "answers.sqlite")
    with bots.serving(folder, store.study, store) as where:
        page = tab(PHONE)
        page.goto(f"{where.url}/join/{store.new_tokens()[2]}")
        page.locator("label").tap()
        page.get_by_role("button", name="Take part").tap()
        page.get_by_role("button", name="Begin").tap()
        page.wait_for_selector(".answers")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        sizes = page.evaluate("[...document.querySelectorAll('button')].map((b) => b.getBoundingClientRect().height)")
        assert min(sizes) >= 44
        if kind == "preference":
            assert page.locator(".answers button").first.inner_text().endswith("First much better")
            widths = page.evaluate(
                "[...document.images].map((i) => i.getBoundingClientRect().width * devicePixelRatio)"
            )
            assert widths[0] == widths[1] == round(widths[0])
        page.screenshot(path=tmp_path / f"{kind}.png", full_page=True)
        given = answer_by(page, by_tap, lambda i: 1 + i % 3)
    assert given == len(store.study.slots[1].plan) == store.count()


def begin(page: Any) -> None:
    page.wait_for_selector("#consent")
    page.check("#consent")
    page.get_by_role("button", name="Take part").click()
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector(".answers")
    page.wait_for_timeout(310)


def shown(page: Any) -> tuple[str, list[str]]:
    """Where a page is, and what it shows, as names of pictures in screen order."""
    page.wait_for_selector(".answers")
    sources = page.evaluate("[...document.images].map((image) => image.src.split('/').at(-1))")
    return page.locator("#progress").inner_text(), sources


def test_reload_second_tab_and_restart_show_the_same(tab: Callable, make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study("kind=preference", *FEW, "practice=0")
    store = stored(folder, tmp_path / "answers.sqlite")
    with bots.serving(folder, store.study, store) as where:
        page = tab(DESK)
        page.goto(f"{where.url}/join/{store.new_tokens()[1]}")
        begin(page)
        for done in (1, 2):
            page.keyboard.press("4")
            until(page, f"{done + 1} ")
            page.wait_for_timeout(310)
        before = shown(page)
        page.reload()
        assert shown(page) == before
        second = page.context.new_page()
        second.goto(where.url)
        assert shown(second) == before
        second.close()
        cookies = page.context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]
    again = stored(folder, tmp_path / "answers.sqlite")
    with bots.serving(folder, again.study, again) as where:
        other = tab(DESK)
        other.context.add_cookies([{**{key: cookies[0][key] for key in ("name", "value")}, "url": where.url}])
        other.goto(where.url)
        assert shown(other) == before


def test_one_press_is_one_answer_and_backspace_takes_it_back(
    tab: Callable, make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = make_study("kind=preference", *FEW)
    store = stored(folder, tmp_path / "answers.sqlite")
    with bots.serving(folder, store.study, store) as where:
        page = tab(DESK)
        page.goto(f"{where.url}/join/{store.new_tokens()[1]}")
        begin(page)
        page.locator(".answers button").nth(1).dblclick()
        page.get_by_role("button", name="Begin").click()  # after practice
        page.wait_for_selector(".answers")
        page.wait_for_timeout(310)
        for _ in range(8):
            page.keyboard.down("3")  # a held key repeats
        page.keyboard.up("3")
        until(page, "2 ")
        page.wait_for_timeout(310)
        page.keyboard.press("Backspace")
        until(page, "1 ")
        assert page.locator("[aria-pressed=true]").inner_text().endswith("No preference")
        page.wait_for_timeout(310)
        page.keyboard.press("5")
        until(page, "2 ")
        page.keyboard.press("1")  # within 300 ms: not taken
        page.wait_for_timeout(310)
        page.keyboard.press("Control+1")
        page.wait_for_timeout(100)
    assert store.count() == 3
    assert [answer.value for answer in store.counted()] == [2, 5]


def test_answers_wait_for_a_server_that_is_away(chromium: Any, make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study("kind=preference", *FEW, "practice=0")
    store = stored(folder, tmp_path / "answers.sqlite")
    with bots.serving(folder, store.study, store) as where:
        context = chromium.new_context(viewport=DESK)
        page = context.new_page()
        page.goto(f"{where.url}/join/{store.new_tokens()[1]}")
        begin(page)
        page.wait_for_timeout(200)  # the next trial is preloaded
        context.set_offline(True)
        page.keyboard.press("4")
        page.wait_for_selector("text=No connection")
        assert store.count() == 0
        assert page.locator("#progress").inner_text().startswith("2 ")  # one goes on meanwhile
        page.wait_for_timeout(310)
        page.keyboard.press("5")
        page.close()
        context.set_offline(False)
        later = context.new_page()  # the queue outlives the page
        later.goto(where.url)
        assert shown(later)[0].startswith("3 ")
        context.close()
    assert [answer.value for answer in store.counted()] == [4, 5]


def clocked(page: Any, value: Callable[[int], int], count: int) -> None:
    """Answers by a clock of our own, which moves between what is shown and the key, and never else."""
    for i in range(count):
        page.wait_for_selector(".answers button:not([disabled]), .text")
        if not page.locator(".answers").count():
            page.get_by_role("button").first.press("Enter")
            page.wait_for_selector(".answers button:not([disabled])")
        told = page.locator("#progress").inner_text()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # time runs
        page.evaluate(f"window.nowMs += {1000 + 100 * i}")
        page.keyboard.press(str(value(i)))
        until(page, other_than=told)
    page.wait_for_selector("text=Thank you")


def test_the_folder_exports_the_same_bytes_as_the_server(tab: Callable, make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study("kind=preference", *FEW)
    study, name = open_study(folder)
    count, value = len(study.slots[0].plan), lambda i: 1 + i % 5
    store = stored(folder, tmp_path / "served.sqlite")
    stopped = "window.nowMs = 0; performance.now = () => window.nowMs"

    def consented(page: Any) -> Any:
        page.check("#consent")
        page.get_by_role("button", name="Take part").click()
        page.get_by_role("button", name="Begin").click()
        return page

    with bots.serving(folder, study, store) as where:
        page = tab(DESK)
        page.add_init_script(stopped)
        page.goto(f"{where.url}/join/{store.new_tokens()[1]}")
        clocked(consented(page), value, count)
    out = static.write(folder, study, name)
    page = tab(DESK, accept_downloads=True)
    page.add_init_script(stopped)
    page.goto(f"file://{out}/index.html")
    page.fill("#number", "1")
    page.get_by_role("button", name="Begin").click()
    clocked(consented(page), value, count)
    page.reload()  # nothing is lost
    page.wait_for_selector("text=Thank you")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the file").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == "answers_1.json"
    other = stored(folder, tmp_path / "static.sqlite")
    assert static.merge(other, [saved]) == (count, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, there = (export(s, tmp_path / at).read_text() for s, at in ((store, "a"), (other, "b")))
    assert here == there
    assert [json.loads(line)["active_ms"] for line in here.splitlines()] == [1000 + 100 * i for i in range(1, count)]


def test_a_link_of_nobody_says_so(chromium: Any, pairs: Path, tmp_path: Path) -> None:
    store = stored(pairs, tmp_path / "answers.sqlite")
    with bots.serving(pairs, store.study, store) as where:
        page = chromium.new_page()
        page.goto(where.url)
        page.wait_for_selector("text=This needs your own link")
        page.close()


def test_the_first_trial_of_two_large_pictures_comes_within_a_second(
    tab: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said, not asserted: the time from the click to both pictures on the screen."""
    from folders import make_run
    from kit import settings

    from experiments.rating import make as making

    for run in ("x", "y"):
        make_run(tmp_path / run, [{"prompt": "a"}, {"prompt": "b"}], [0], size=512)
    study, made = making.study(settings("kind=preference", f"runs=[{tmp_path}/x,{tmp_path}/y]", *FEW))
    making.write(tmp_path / "study", study, made)
    store = stored(tmp_path / "study", tmp_path / "answers.sqlite")
    with bots.serving(tmp_path / "study", study, store) as where:
        page = tab(DESK)
        page.goto(f"{where.url}/join/{store.new_tokens()[1]}")
        page.check("#consent")
        page.get_by_role("button", name="Take part").click()
        page.wait_for_selector("text=How to answer")
        start = time.perf_counter()
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector(".answers")
        took = time.perf_counter() - start
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 512)")
    with capsys.disabled():
        print(f" first trial of two 512 px pictures: {took:.2f} s ", end="")
