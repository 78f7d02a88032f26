"""What finished sweeps say, in files small enough to be committed: see experiments.findings.

NAME.json (every cell's numbers, the verdicts, command and commit) and NAME.svg (the curves) of each sweep, and in
RESULTS.md its table of claims, between <!-- NAME --> and <!-- end -->, and the tables of values that its page asks for,
after <!-- NAME values -->; the text around the tables is written by hand.
"""

import re
from dataclasses import asdict
from html import escape
from typing import Any

from experiments.sweeps.claims import ClaimVerdict, p_text, together
from experiments.sweeps.figures import draw_frontier, draw_lines, frontier, lines
from experiments.sweeps.folder import Sweep
from experiments.sweeps.provenance import not_alike

PER_ROW, TITLE = 2, 20  # panels; pixels


def summary_of(sweep: Sweep, found: list[ClaimVerdict]) -> dict[str, Any]:
    """Returns a sweep's numbers, without the scores of single pictures and with no path of this machine."""
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
    claims = [{key: rounded(value) for key, value in asdict(verdict).items()} for verdict in found]
    mixed = not_alike(sweep)
    told = {"name": sweep.name, "command": command, "commit": sweep.commit, **({"not_alike": mixed} if mixed else {})}
    return {**told, "claims": claims, "cells": cells}


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def panels(sweep: Sweep) -> dict[str, bytes]:
    """Returns the page's curves by their titles, as SVG for a light page."""
    found = {}
    for curve in sweep.page.get("curves", []):
        if series := lines(sweep.narrowed(curve.get("at", {})), curve["measures"]):
            drawn = draw_lines(series, sweep.page.get("x"), curve.get("ylabel") or "")
            found[curve["title"]] = drawn.light
    for measure in sweep.page.get("frontier", []):
        if groups := frontier(sweep, measure):
            found[f"{measure}, by effective scale"] = draw_frontier(groups, measure).light
    return found


def side_by_side(panels: dict[str, bytes]) -> str:
    """Joins SVG files to one, on white, each below its title."""
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


def claims_table(found: list[ClaimVerdict], second: list[ClaimVerdict] | None = None) -> str:
    """Returns the verdicts in Markdown; those of a second model, and what both say together, beside the first's."""
    head = ["claim", "measure", "difference (95 % interval)", "p (Holm)", "verdict"]
    head += [] if second is None else ["second model", "p (Holm)", "verdict", "together"]
    rows = [head, ["---"] * len(head)]
    others = {(verdict.say, verdict.measure): verdict for verdict in second or []}
    for verdict, reading in zip(found, together(found, second or []), strict=True):
        told = "; ".join(filter(None, [verdict.found, verdict.note]))
        row = [verdict.say, f"`{verdict.measure}`", told, *outcome(verdict)]
        if second is not None:
            other = others.get((verdict.say, verdict.measure))
            row += [*((other.found, *outcome(other)) if other else ("", "", "")), f"**{reading}**"]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def outcome(verdict: ClaimVerdict) -> tuple[str, str]:
    return p_text(verdict.holm), f"**{verdict.verdict}**"


def values_table(sweep: Sweep, asked: dict[str, Any]) -> str:
    """Returns a measure by two axes in Markdown, each value with half of its interval, and the best ones bold.

    asked  title, measure, rows and columns (axes), at (values of other axes), best (highest or lowest), of (each row,
           or by default each column)
    """
    chosen, keys = sweep.narrowed(asked.get("at", {})), (asked["rows"], asked["columns"])
    found = {tuple(cell.axes[key] for key in keys): cell.estimate(asked["measure"]) for cell in chosen.cells}
    measured = {place: e for place, e in found.items() if e is not None}
    pick, side = (max if asked["best"] == "highest" else min), int(asked.get("of") != "row")
    best = {at: pick(e["value"] for place, e in measured.items() if place[side] == at)
            for at in {place[side] for place in measured}}  # fmt: skip

    def told(place: tuple[Any, ...]) -> str:
        if place not in measured:
            return ""
        value, low, high = (measured[place][key] for key in ("value", "low", "high"))
        half = "" if low is None else f" ± {(high - low) / 2:.2f}"
        return f"**{value:.2f}**{half}" if value == best[place[side]] else f"{value:.2f}{half}"

    rows, columns = (chosen.values(key) for key in keys)
    lines = [[asked["title"], *map(str, columns)], ["---"] * (len(columns) + 1)]
    lines += [
        [str(row), *(told((row, x)) for x in columns)] for row in rows if any((row, x) in measured for x in columns)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(text: str, name: str, table: str) -> str:
    """Returns the text, with the table where it is marked."""
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
