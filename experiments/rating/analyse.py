"""The results of a study: analysis.json, analysis.csv, and analysis.html, one page that needs no other file."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

from experiments import files
from experiments.files import UserError
from experiments.rating.analysis import Analysed, analysed
from experiments.rating.answers import read_answers
from experiments.rating.results import render
from experiments.rating.study import open_study


def analyse(folder: Path, answers_file: Path, out: Path) -> Path:
    """Writes the results of the study in `folder` into the folder `out`, and returns the page's file.

    Raises UserError if the answers are of another study, or none count, or the key is missing.
    """
    study, name = open_study(folder)
    answers, studies = read_answers(answers_file)
    if studies - {name}:
        raise UserError(f"{answers_file}: answers of another study than {folder / 'study.json'}")
    labels = read_labels(folder / "key.json") if study.methods else {}
    options = {question["name"]: list(question["options"]) for question in study.asks.questions}
    found = analysed(answers, study.asks.analysis, labels, options, study.rules, study.claims)
    simulated = any(answer.simulated for answer in answers)
    about = {"study": name, "title": study.title, "kind": study.kind_name, "simulated": simulated, "labels": labels}
    content = {**about, "rules": study.rules, "claims": study.claims, **asdict(found)}
    page = render(study, name, folder / "pictures", found, labels, simulated)
    files.write(out / "analysis.json", json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    files.write(out / "analysis.csv", as_csv(found))
    files.write(out / "analysis.html", page)
    return out / "analysis.html"


def read_labels(path: Path) -> dict[str, str]:
    """Returns what the methods are called. Raises UserError without the key."""
    if not path.is_file():
        raise UserError(f"{path} is missing: it alone says which method is which")
    labels: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["labels"]
    return labels


def as_csv(found: Analysed) -> str:
    """Returns a line for each estimate, of the raters that are kept and of everybody."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["raters", "table", "row", "column", "value", "low", "high", "count"])
    for raters, findings in (("kept", found.kept), ("everybody", found.everybody)):
        for table in (*findings.tables, findings.care):
            for row, cells in table.rows:
                for column, e in zip(table.columns, cells, strict=True):
                    if e is not None:
                        lines.writerow([raters, table.title, row, column, e.value, e.low, e.high, e.count])
        for verdict in findings.verdicts:
            if (e := verdict.found) is not None:
                lines.writerow([raters, "claims", verdict.say, verdict.verdict, e.value, e.low, e.high, e.count])
    return file.getvalue()
