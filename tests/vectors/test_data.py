"""Packages of our own making become drawings: placed, named, split, prepared once."""

from dataclasses import replace
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from drawn import LETTERS, LINES
from hydra import compose, initialize_config_dir

from experiments.data import drawings as verb
from experiments.emoji.world import settings_of
from experiments.files import CONF, UserError
from experiments.vectors import data
from experiments.vectors.data import Drawings, Prepared, Source, load_drawings, prepare
from experiments.vectors.fonts import BASELINE, CAPITALS, glyphs
from experiments.vectors.measures import round_trip
from experiments.vectors.packages import credit, find
from experiments.vectors.raster import renders
from ldm.svg.drawing import BOX
from ldm.svg.geometry import area, flattened
from ldm.svg.sequences import decode_commands


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    drawn.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def letters(packages: Path) -> Drawings:
    return load_drawings(LETTERS, packages, packages / "cache")[0]


def test_glyphs_stand_on_the_baseline_and_are_as_high_as_their_capitals(packages: Path) -> None:
    found = {(g.face, g.character): g.drawing for g in glyphs(find(packages, "@fontsource/one"))}
    assert len(found) == 3 * 4, "three faces of four characters; the Greek file is none of them"
    scale = CAPITALS / 700
    (path,) = found["one-latin-400-normal", "H"].paths
    half = 100 * scale
    corners = {path.start, *(segment.end for segment in path.segments)}
    wanted = {(12 - half, BASELINE), (12 + half, BASELINE), (12 - half, 4.0), (12 + half, 4.0)}
    assert {(round(x, 6), round(y, 6)) for x, y in corners} == {(round(x, 6), round(y, 6)) for x, y in wanted}
    (path,) = found["one-latin-700-normal", "x"].paths
    assert max(y for _, y in flattened(path)) == pytest.approx(BASELINE + 100 * scale)


def test_an_outline_without_points_on_it_is_a_closed_path_of_the_same_area(packages: Path) -> None:
    """Between four controls at the corners of a square the quadratic curve encloses 5/6 of it."""
    (drawing,) = [
        g.drawing
        for g in glyphs(find(packages, "@fontsource/one"))
        if (g.face[-10:], g.character) == ("400-normal", "O")
    ]
    scale = CAPITALS / 700
    areas = [area(flattened(path, 200)) for path in drawing.paths]
    wanted = [(2 * r * scale) ** 2 * 5 / 6 for r in (300, 200)]
    assert areas[0] * areas[1] < 0, "the hole runs the other way"
    assert sorted(map(abs, areas), reverse=True) == pytest.approx(wanted, rel=5e-3)


def test_what_is_stored_is_what_was_drawn(packages: Path, letters: Drawings) -> None:
    assert letters.classes == ("H", "O", "x")
    assert letters.count == 3 * 5, "the empty y is left out"
    found = [decode_commands(sequence) for sequence in letters.sequences()]
    assert torch.equal(renders(found), letters.renders)
    assert max(map(round_trip, found)) < 1e-4
    by_class = [letters.classes[label] for label in letters.labels]
    assert [len(drawing.paths) for drawing in found] == [{"H": 1, "O": 2, "x": 1}[name] for name in by_class]
    assert all(path.closed for drawing in found for path in drawing.paths)


def test_families_are_held_out_whole_and_always_the_same(packages: Path) -> None:
    source = replace(LETTERS, share_held_out=0.5)
    train, held_out = load_drawings(source, packages, packages / "cache")
    families = [{origin.partition("-")[0] for origin in part.origins} for part in (train, held_out)]
    assert not families[0] & families[1] and len(families[0]) == len(families[1]) == 1
    again = load_drawings(source, packages, packages / "cache")[1]
    assert again.origins == held_out.origins
    others = {
        tuple(load_drawings(replace(source, split_seed=seed), packages, packages / "cache")[1].origins)
        for seed in range(8)
    }
    assert len(others) == 2


def test_names_that_several_sets_have(packages: Path) -> None:
    both = load_drawings(LINES, packages, packages / "cache")[0]
    assert both.classes == ("dot", "home")
    assert sorted(both.origins) == sorted(["round:dot-line", "thin:dot", "round:home-line", "thin:home", "thin:home-2"])
    fewer = load_drawings(replace(LINES, most=1, only=("home",)), packages, packages / "cache")[0]
    assert fewer.classes == ("home",) and fewer.count == 1
    assert len(load_drawings(replace(LINES, count=1), packages, packages / "cache")[0].classes) == 1


def test_words_of_names(packages: Path) -> None:
    words = load_drawings(replace(LINES, classes="words"), packages, packages / "cache")[0]
    assert words.classes == ("arrow", "dot", "home")


def test_what_is_left_out_is_told(packages: Path) -> None:
    prepared = prepare(LINES, packages, packages / "cache")["@iconify-json/thin"]
    assert prepared.left_out == {"<text>: only groups and plain shapes are read": 1, "beyond the box": 1}
    line = verb.kept({"thin": prepared})
    assert line.startswith("4 drawings of 1 packages are in, 66.7%; left out:")


def test_no_class_left(packages: Path) -> None:
    with pytest.raises(UserError, match="drawings=lines: no class has 9 drawings"):
        load_drawings(replace(LINES, least=9), packages, packages / "cache")


def equal(one: Prepared, other: Prepared) -> bool:
    fields = ("kinds", "arguments", "renders", "names", "origins")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


def test_preparing_goes_on_where_it_stopped_and_in_parallel(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(LETTERS, packages, tmp_path / "parallel", processes=2)
    done: list[str] = []
    one_package = data.prepare_package

    def interrupted(source: Source, package: data.Package, file: Path) -> str:
        if done:
            raise KeyboardInterrupt
        done.append(package.name)
        return one_package(source, package, file)

    monkeypatch.setattr(data, "prepare_package", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(LETTERS, packages, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").iterdir())) == 1
    again: list[str] = []
    monkeypatch.setattr(data, "prepare_package", lambda *job: (again.append(job[1].name), one_package(*job))[1])
    rest = prepare(LETTERS, packages, tmp_path / "stopped")
    assert sorted([*done, *again]) == sorted(LETTERS.packages)
    assert all(equal(whole[name], rest[name]) for name in whole)


def test_a_missing_or_damaged_package_is_named(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="@fontsource/one is missing: run `npm pack @fontsource/one` in"):
        prepare(LETTERS, tmp_path, tmp_path / "cache")
    path = drawn.write_font(tmp_path, "one", {"400-normal": 200})
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"one-1.0.0.tgz is damaged \(.*\): run `npm pack @fontsource/one` in .* again"):
        prepare(replace(LETTERS, packages={"@fontsource/one": ""}), tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_row_of_drawings_goes_through_all_of_them_again_and_again(letters: Drawings) -> None:
    laps = [[letters[lap * letters.count + i] for i in range(letters.count)] for lap in range(3)]
    assert all(sorted(lap) == list(range(letters.count)) for lap in laps)
    assert laps[0] != laps[1] != laps[2]
    batch = letters.collate(laps[0][:4])
    assert torch.equal(batch.sequences, letters.sequences()[laps[0][:4]])
    assert torch.equal(batch.classes, letters.labels[laps[0][:4]])


def test_credits(packages: Path) -> None:
    wanted = {"name": "@fontsource/one", "title": "One", "authors": "Copyright Own Authors", "licence": "OFL-1.1"}
    assert credit(find(packages, "@fontsource/one")) == wanted
    assert "| @iconify-json/thin | Thin | Own | MIT |" in verb.credits(LINES, packages)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "drawings").glob("*.yaml")))
def test_every_set_of_drawings_is_a_source_whose_packages_are_credited(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        source = Source(**settings_of(compose("drawings", [f"drawings={name}"]).drawings))
    table = (Path(data.__file__).parent / "CREDITS.md").read_text()
    assert source.name == name and source.commands <= 40
    assert all(f"| {package} |" in table for package in source.packages)


def test_the_verb_prepares_counts_and_checks(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["workers=1", "check=true", f"icons={packages}", f"cache={packages / 'cache'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("drawings", [*settings, f"credits={tmp_path / 'credits.md'}"])
    monkeypatch.setattr(verb, "Source", lambda **settings: LETTERS)
    verb.main(cfg)
    out = capsys.readouterr().out
    assert "15 drawings of 2 packages are in, 75.0%; left out:\n       5 empty" in out
    assert "3 classes: 15 drawings to learn from, 0 held out" in out
    assert "no coordinate of 15 drawings moves by more than 0.0000 of 24" in out
    assert (tmp_path / "credits.md").read_text().count("OFL-1.1") == 2


def test_coordinates_stay_in_the_box(letters: Drawings) -> None:
    numbers = letters.arguments.float() * data.STEP
    assert numbers.min() >= 0 and numbers.max() <= BOX
