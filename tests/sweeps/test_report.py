"""The page of a sweep: what stands in it is what was stored, of a finished sweep and of one that is not."""

import base64
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import drawing, make_run
from PIL import Image
from tiny import Outcome

import experiments.run.cli
from experiments import report
from experiments.files import write
from experiments.metrics.measuring import store
from experiments.pictures import save_png
from experiments.run.folder import Run
from experiments.sweeps.figures import (
    LIGHT,
    ErrorBar,
    Line,
    Look,
    by_step,
    draw_frontier,
    draw_lines,
    frontier,
    lines,
    mean_bar,
)
from experiments.sweeps.folder import open_sweep, planned
from experiments.sweeps.page import rounded, whole, write_page

PROMPTS = ["a cat <script>alert(1)</script> & a dog", "a fish"]
SCALES, METHODS = [2, 10.5, "joint"], ["cfg", "other"]
PAGE = {
    "x": "guidance.scale",
    "by": "method",
    "curves": [{"title": "Both", "measures": ["judge/both", "judge"], "ylabel": "share"}, {"measures": ["alpha_fid"]}],
    "frontier": ["judge/both"],
    "frontier_curve": {"method": "cfg"},
}


def estimate(value: float, low: float | None = None, high: float | None = None, count: int = 4) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "count": count}


def found(method: str, scale: float | str) -> dict[str, Any]:
    """What the judge says of a cell: each cell has numbers of its own."""
    base = (0.11 if method == "cfg" else 0.47) + (0.0123456 if scale == "joint" else float(scale) / 100)
    rows = [{"file": f"images/{p:05d}_{s}.png", "value": 0.25 * s, "both": s == 0} for p in range(2) for s in (0, 1)]
    details = {"both": estimate(base, base - 0.051, base + 0.052), "right": estimate(base / 2)}
    warnings = ["2 pictures left out", "2 pictures left out"]
    return {**estimate(base / 3), "details": details, "about": {}, "warnings": warnings, "per_image": rows}


def effective(scale: float) -> dict[str, Any]:
    about = {"by_step": {"scale": [scale, scale + 1], "cosine": [1.0, 1.0], "timestep": [900, 1]}}
    return {**estimate(scale, scale - 0.1, scale + 0.1), "details": {}, "about": about, "warnings": [], "per_image": []}


def make_sweep(folder: Path, page: dict[str, Any] | None = None) -> Path:
    """A finished sweep of 2 x 3 cells, each of 2 prompts x 2 seeds."""
    begin(folder, PAGE if page is None else page)
    for method in METHODS:
        for scale in SCALES:
            cell = make_cell(folder, {"method": method, "guidance.scale": scale})
            make_run(cell, [{"prompt": prompt} for prompt in PROMPTS], [0, 1])
            store(cell, "judge", found(method, scale))
            if scale != "joint":
                store(cell, "effective_scale", effective(float(scale) + (method == "other")))
    return folder


def begin(folder: Path, page: dict[str, Any]) -> None:
    told = {"name": "tried", "claim": "It <helps>.", "claims": [], "page": page, "config": {}}
    folder.mkdir(parents=True)
    write(folder / "sweep.json", json.dumps({**told, "command": "python -m x 'a=${b}'", "commit": "c0ffee+changes"}))


def make_cell(folder: Path, axes: dict[str, Any]) -> Path:
    cell = folder / ",".join(map(str, axes.values()))
    cell.mkdir()
    write(cell / "cell.json", json.dumps({"name": cell.name, "axes": axes}))
    return cell


class Page(HTMLParser):
    """Tables as rows of cells, a cell being its text, its pictures and the values of its <data>; and all attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.tables: list[list[list[dict[str, Any]]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self.open = "", False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        values = dict(attrs)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append({"text": "", "images": [], "data": []})
            self.open = True
        elif tag == "img" and self.open:
            self.tables[-1][-1][-1]["images"].append(values)
        elif tag == "data":
            self.tables[-1][-1][-1]["data"].append(float(values["value"] or ""))

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open:
            self.tables[-1][-1][-1]["text"] += data

    def grids(self) -> list[list[list[dict[str, Any]]]]:
        return [table for table in self.tables if any(cell["images"] for row in table for cell in row)]

    def numbers(self) -> list[list[list[dict[str, Any]]]]:
        return [table for table in self.tables if any(cell["data"] for row in table for cell in row)]


def pixels(image: dict[str, str]) -> np.ndarray:
    head, _, content = image["src"].partition(",")
    assert head == "data:image/webp;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sweep(tmp_path_factory.mktemp("sweeps") / "tried")
    for name in ("maps", "semantics"):
        save_png(Image.new("RGB", (40, 30), "green"), folder / "cfg,2" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def page(sweep: Path) -> Page:
    return Page(write_page(sweep))


def test_pictures_of_one_prompt_and_seed_lie_in_a_row_under_their_settings(sweep: Path, page: Page) -> None:
    assert len(page.grids()) == 2
    for method, grid in zip(METHODS, page.grids(), strict=True):
        assert [cell["text"].strip() for cell in grid[0]] == ["guidance.scale", "2", "10.5", "joint"]
        assert len(grid) == 5
        for row, (p, seed) in zip(grid[1:], [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
            assert row[0]["text"].replace("\N{NO-BREAK SPACE}", " ") == f"{PROMPTS[p]}, seed {seed}"
            for scale, cell in zip(SCALES, row[1:], strict=True):
                stored = Image.open(sweep / f"{method},{scale}" / f"images/{p:05d}_{seed}.png")
                np.testing.assert_array_equal(pixels(cell["images"][0]), np.array(stored))
                alt = f"{PROMPTS[p]}; seed {seed}; method {method}, guidance.scale {scale}"
                assert cell["images"][0]["alt"] == alt
                title = f"{alt}\njudge: {0.25 * seed:g}, both {'no' if seed else 'yes'}"
                assert cell["images"][0]["title"].startswith(title)


def test_the_page_needs_no_network_and_runs_nothing(page: Page) -> None:
    assert "http://" not in page.source and "https://" not in page.source
    assert "@import" not in page.source and "url(" not in page.source
    for tag, key, value in page.attributes:
        assert tag != "script" and not key.startswith("on"), (tag, key)
        if key in ("src", "href", "srcset"):
            assert value.startswith(("data:", "#")), (tag, key, value[:60])
        assert key != "alt" or value, tag
    assert "<script" not in page.source


def test_the_tables_hold_the_stored_numbers(sweep: Path, page: Page) -> None:
    main, details = page.numbers()
    heads = [cell["text"].split("n =")[0].strip() for cell in main[0]]
    assert heads == ["method · guidance.scale", "judge/both", "judge", "effective_scale"]
    assert [cell["text"].split("n =")[0].strip() for cell in details[0][1:]] == ["judge/right"]
    assert len(main) == 7
    for row, (method, scale) in zip(main[1:], [(m, s) for m in METHODS for s in SCALES], strict=True):
        stored = found(method, scale)
        both = stored["details"]["both"]
        assert row[1]["data"] == [both["value"]] and row[2]["data"] == [stored["value"]]
        assert row[1]["text"].split() == [f"{both['value']:.3f}", f"{both['low']:.3f}", "to", f"{both['high']:.3f}"]
        assert row[2]["text"].split() == [f"{stored['value']:.3f}"]
        assert (row[3]["data"] == []) == (scale == "joint")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.5, 1.0], ["0.500", "1.000"]),
        ([23.417, 4.2], ["23.42", "4.20"]),
        ([1234.5], ["1234"]),
        ([0.01234], ["0.0123"]),
        ([0.0], ["0.000"]),
        ([1.5e-9], ["1.5e-09"]),
    ],
)
def test_numbers_of_a_column_align(values: list[float], texts: list[str]) -> None:
    assert list(map(rounded(values), values)) == texts


def test_curves_plot_the_stored_numbers(sweep: Path) -> None:
    plotted = lines(whole(open_sweep(sweep)), ["judge/both", "alpha_fid"])
    assert [(line.label, line.measure) for line in plotted] == [("cfg", "judge/both"), ("other", "judge/both")]
    for line in plotted:
        stored = [found(line.label, scale)["details"]["both"] for scale in SCALES]
        assert [p.x for p in line.points] == SCALES
        assert [p.at for p in line.points] == [ErrorBar(e["value"], e["low"], e["high"]) for e in stored]


def test_a_curve_may_be_the_mean_over_an_axis(sweep: Path) -> None:
    opened = whole(open_sweep(sweep))
    both = {line.label: line for line in lines(opened, ["judge/both"])}
    (line,) = lines(replace(opened, page={**opened.page, "by": None, "mean_over": opened.page["by"]}), ["judge/both"])
    for point, a, b in zip(line.points, both["cfg"].points, both["other"].points, strict=True):
        assert point.at.value == (a.at.value + b.at.value) / 2
        below = [one.at.value - one.at.low for one in (a, b)]
        assert point.at.value - point.at.low == pytest.approx((below[0] ** 2 + below[1] ** 2) ** 0.5 / 2)
    assert mean_bar([ErrorBar(1.0, 0.5, 2.0), ErrorBar(None, None, None)]) == ErrorBar(1.0, 0.5, 2.0)
    assert mean_bar([ErrorBar(1.0, None, None), ErrorBar(3.0, 2.0, 4.0)]) == ErrorBar(2.0, None, None)


def test_what_was_not_measured_is_a_gap(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep")
    (folder / "cfg,10.5/metrics/judge.json").unlink()
    plotted = lines(whole(open_sweep(folder)), ["judge/both"])
    assert plotted[0].points[1].at == ErrorBar(None, None, None)
    assert "<svg" in draw_lines(plotted, "scale", "").light.decode()


def test_lines_look_different_where_there_are_more_of_them_than_colours() -> None:
    look = Look(tuple("abcdefghijklmno"), ("judge/both", "clip"))
    looks = {
        (look.colour(line)[1:], look.style(line)["marker"], str(look.dash(line)))
        for line in (Line(label, measure, ()) for label in look.labels for measure in look.measures)
    }
    assert len({(int(colour) % len(LIGHT), *other) for colour, *other in looks}) == len(looks) == 30
    assert len({(int(key.get_color()[1:]) % len(LIGHT), key.get_marker()) for key in look.keys(True)[:15]}) == 15


def test_frontier_orders_cells_by_their_effective_scale(sweep: Path) -> None:
    opened = whole(open_sweep(sweep))
    curve, other = frontier(opened, "judge/both")
    assert (curve.label, curve.curve, other.label, other.curve) == ("cfg", True, "other", False)
    assert [(s.name, s.scale.value) for s in curve.spots] == [("2", 2), ("10.5", 10.5)]
    assert [(s.name, s.scale.value) for s in other.spots] == [("2", 3), ("10.5", 11.5)]
    assert curve.spots[0].found.value == found("cfg", 2)["details"]["both"]["value"]
    assert by_step(opened)["cfg, scale 10.5"] == [10.5, 11.5]
    drawn = draw_frontier([curve, other], "judge/both")
    assert drawn.light != drawn.dark


def test_head_and_sections(page: Page) -> None:
    assert "python -m x 'a=${b}'" in page.text and "c0ffee" in page.text and "It <helps>." in page.text
    assert "6 cells, all finished" in page.text
    assert "24 of 24 pictures are shown" in page.text
    assert "in 6 of 6 cells: 2 pictures left out" in page.text
    assert page.text.count("2 pictures left out") == 1
    assert "No values yet: alpha_fid" in page.text
    assert "Shown for 1 of 1 cells" in page.text
    ids = {value for _, key, value in page.attributes if key == "id"}
    links = {value[1:] for _, key, value in page.attributes if key == "href" and value.startswith("#")}
    assert links == {"pictures", "curves", "scale", "attention", "numbers"} and links <= ids


def test_a_sweep_that_is_not_finished_says_so(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep")
    told = json.loads((folder / "sweep.json").read_text())
    typed = ["experiment=tried", "n=2", "method=other", "guidance.scale=2,20,'joint'"]
    told["planned"] = planned({"method": "a,b", "guidance.scale": "2,10.5,joint"}, typed)
    write(folder / "sweep.json", json.dumps(told))
    failed, running = folder / "cfg,10.5", folder / "other,2"
    write(failed / "error.txt", "ValueError: latents are <not> finite\n")
    for path in (*failed.rglob("*.png"), *failed.glob("metrics/*"), *running.glob("metrics/*"), running / "grid.png"):
        path.unlink()
    written = (running / "samples.jsonl").read_text().splitlines(keepends=True)
    write(running / "samples.jsonl", "".join(written[:1]))

    page = Page(write_page(folder))
    assert "4 of 7 cells are finished" in page.text
    assert "cfg, scale 10.5 failed: ValueError: latents are <not> finite" in page.text
    assert "unfinished, 1 pictures so far: other, scale 2" in page.text
    assert "not begun: other, scale 20" in page.text
    assert "17 of 17 pictures are shown" in page.text
    for grid in page.grids():
        assert len(grid) == 5  # rows are those of the finished cells
    first, second = page.grids()
    assert [bool(cell["images"]) for cell in first[1][1:]] == [True, False, True]
    assert [bool(cell["images"]) for cell in second[1][1:]] == [True, True, False, True]
    assert [bool(cell["images"]) for cell in second[2][1:]] == [False, True, False, True]
    rows = {row[0]["text"]: row for row in page.numbers()[0]}
    assert {"cfg, scale 10.5 failed", "other, scale 20 not begun"} <= rows.keys()
    assert rows["cfg, scale 10.5 failed"][1]["data"] == []
    (gap,) = [p for p in lines(whole(open_sweep(folder)), ["judge"])[1].points if p.x == 20]
    assert gap.at.value is None


def test_stages_label_columns_and_seeds_label_rows(tmp_path: Path) -> None:
    begin(tmp_path / "sweep", {"x": "steps"})
    for n in (0, 6):
        stages = [{"prompt": "a cat", "steps": n}, {"prompt": "a dog", "steps": 20 - n}]
        seeds = [3, 4] if n else [3, 4, 5]  # a row is what all cells have
        make_run(make_cell(tmp_path / "sweep", {"steps": n}), [{"stages": stages}], seeds)
    page = Page(write_page(tmp_path / "sweep"))
    (grid,) = page.grids()
    assert [row[0]["text"] for row in grid[1:]] == ["seed\N{NO-BREAK SPACE}3", "seed\N{NO-BREAK SPACE}4"]
    assert ("th", "title", "a cat (6 steps) > a dog (14 steps)") in page.attributes


def test_a_page_without_settings_names_the_cells(tmp_path: Path) -> None:
    page = Page(write_page(make_sweep(tmp_path / "sweep", page={})))
    (grid,) = page.grids()
    assert {cell["text"] for cell in grid[0][1:]} == {f"{m},{s}" for m in METHODS for s in SCALES}


def test_a_study_shows_its_figures(tmp_path: Path) -> None:
    begin(tmp_path / "sweep", {"x": "t", "curves": [{"measures": ["study"]}]})
    cell = make_cell(tmp_path / "sweep", {"t": "late"})
    store(cell, "study", {**estimate(0.5, 0.4, 0.6), "details": {}, "about": {}, "warnings": [], "per_image": []})
    save_png(Image.new("RGB", (2000, 500), "red"), cell / "figure.png")
    page = Page(write_page(tmp_path / "sweep"))
    assert page.grids() == []
    assert ("img", "alt", "Figure of the cell late") in page.attributes
    assert ("img", "width", "1400") in page.attributes


def test_200_photographs_are_spread_evenly_and_stay_small(tmp_path: Path) -> None:
    begin(tmp_path / "sweep", {"x": "scale", "by": "method"})
    for method in METHODS:
        for scale in range(5):
            cell = make_cell(tmp_path / "sweep", {"method": method, "scale": scale})
            run = Run(cell, {}, torch.device("cpu"))
            for seed in range(2):
                coarse = drawing(seed, 512) + 0.1 * torch.rand(3, 512, 512)  # with the grain of a photograph
                run.add(coarse.clamp(0, 1), {}, {"prompt_index": 0, "seed": seed, "prompt": "a photo"})
            save_png(Image.new("RGB", (8, 8)), cell / "grid.png")
    twenty = write_page(tmp_path / "sweep")
    assert 10 * twenty.stat().st_size < 15e6
    assert "20 of 20 pictures are shown" in Page(twenty).text
    sizes = {
        pixels(image[0]).shape for grid in Page(twenty).grids() for row in grid for c in row if (image := c["images"])
    }
    assert sizes == {(256, 256, 3)}

    few = Page(write_page(tmp_path / "sweep", tmp_path / "few.html", pictures=13))
    assert "10 of 20 pictures are shown" in few.text
    fewer = Page(write_page(tmp_path / "sweep", tmp_path / "fewer.html", pictures=6))
    assert "6 of 20 pictures are shown" in fewer.text
    assert [cell["text"].strip() for cell in fewer.grids()[1][0]] == ["scale", "0", "2", "4"]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["report", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        status = 0
        try:
            experiments.run.cli.run(report.main, "report")
        except SystemExit as stop:
            status = stop.code
        return Outcome(status, *capsys.readouterr())

    return run


def test_the_verb(verb: Callable[..., Outcome], sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    outcome = verb(f"sweep={sweep}", f"out={out}", "pictures=4")
    assert outcome == (0, f"{out}\n", "")
    assert "4 of 24 pictures are shown" in Page(out).text
    assert list(tmp_path.iterdir()) == [out]  # nothing temporary is left


def test_the_verb_refuses_in_one_line(verb: Callable[..., Outcome], sweep: Path, tmp_path: Path) -> None:
    outcome = verb(f"sweep={tmp_path}")
    assert outcome.status == 1
    assert outcome.err.splitlines() == [
        f"error: sweep={tmp_path}: no folder of a sweep of experiments.ablate (no sweep.json in it)"
    ]
    outcome = verb(f"sweep={sweep}", "pictures=0")
    assert (outcome.status, len(outcome.err.splitlines())) == (1, 1)
    assert "pictures=0" in outcome.err
