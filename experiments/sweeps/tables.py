"""python -m experiments.findings sweeps=FOLDER: what finished sweeps say, in files small enough to be committed.

NAME.json (every cell's numbers, the verdicts, command and commit) and NAME.svg (the curves) of each sweep, and in
RESULTS.md its table of claims, between <!-- NAME --> and <!-- end -->; the text around the tables is written by hand.
"""

import re
from dataclasses import asdict
from html import escape
from typing import Any

from experiments.sweeps.claims import Verdict
from experiments.sweeps.figures import draw_frontier, draw_lines, frontier, lines
from experiments.sweeps.folder import Sweep

PER_ROW, TITLE = 2, 20  # panels; pixels


def numbers(sweep: Sweep, found: list[Verdict]) -> dict[str, Any]:
    """Without the scores of single pictures, and with no path of this machine."""
    cells = []
    for cell in sweep.cells:
        measured = {}
        for name, result in cell.results.items():
            some = {key: result[key] for key in ("value", "low", "high", "count")}
            details = {
                detail: [rounded(e[key]) for key in ("value", "low", "high")] for detail, e in result["details"].items()
            }
            measured[name] = {key: rounded(value) for key, value in some.items()} | {"details": details}
            measured[name] |= {"warnings": result["warnings"]} if result["warnings"] else {}
        cells.append({"axes": cell.axes, "measured": measured})
    command = re.sub(r"(?<==)/\S*/", "", sweep.command)
    claims = [asdict(verdict) for verdict in found]
    return {"name": sweep.name, "command": command, "commit": sweep.commit, "claims": claims, "cells": cells}


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def figures(sweep: Sweep) -> dict[str, bytes]:
    """The page's curves by their titles, as SVG for a light page."""
    found = {}
    for curve in sweep.page.get("curves", []):
        if series := lines(sweep, curve["measures"]):
            drawn = draw_lines(series, sweep.page.get("x"), curve.get("ylabel") or "")
            found[curve["title"]] = drawn.light
    for measure in sweep.page.get("frontier", []):
        if groups := frontier(sweep, measure):
            found[f"{measure}, by effective scale"] = draw_frontier(groups, measure).light
    return found


def side_by_side(panels: dict[str, bytes]) -> str:
    """SVG files as one, on white, each below its title."""
    bodies = [svg.decode()[svg.decode().index("<svg") :] for svg in panels.values()]
    sizes = [tuple(float(n) for n in re.findall(r'(?:width|height)="([\d.]+)pt"', body)[:2]) for body in bodies]
    column, placed, top = max(width for width, _ in sizes), [], 0.0
    for i, (title, body) in enumerate(zip(panels, bodies, strict=True)):
        x = i % PER_ROW * column
        names = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>p{i}-", body)  # those of one panel must not be another's
        unitless = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', names, count=2)
        placed.append(
            f'<text x="{x + 8}" y="{top + 14}" font-family="sans-serif" font-size="11">{escape(title)}</text>'
        )
        placed.append(unitless.replace("<svg ", f'<svg x="{x}" y="{top + TITLE}" ', 1))
        if (i + 1) % PER_ROW == 0 or i + 1 == len(bodies):
            top += TITLE + max(height for _, height in sizes[i - i % PER_ROW : i + 1])
    across = column * min(PER_ROW, len(panels))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {top}" width="{across}" height="{top}">'
    return f'{head}<rect width="100%" height="100%" fill="white"/>' + "".join(placed) + "</svg>\n"


def table(found: list[Verdict]) -> str:
    """The verdicts in Markdown."""
    rows = ["| claim | measure | difference (95 % interval) | verdict |", "| --- | --- | --- | --- |"]
    for verdict in found:
        told = "; ".join(filter(None, [verdict.found, verdict.note]))
        rows.append(f"| {verdict.say} | `{verdict.measure}` | {told} | **{verdict.verdict}** |")
    return "\n".join(rows)


def with_table(text: str, name: str, table: str) -> str:
    """The text, with the table where it is marked."""
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
