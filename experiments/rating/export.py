"""Writes the answers that count as answers.jsonl, which is all that the analysis reads beside study.json.

One line per answer that counts, the last of a rater to an item, sorted by slot and position; practice is left out.
A line holds nothing that tells who answered or when, and nothing that names a method: labels stand in key.json alone.

study      sha256 of study.json, the study's name
simulated  whether bots answered; all lines of a file agree
slot       the rater's number, from 1
group      of raters, as the study names it: "public"
device     "fine" or "coarse" (the pointer), a space, and the window's width in CSS pixels rounded down to a hundred; ""
           where the page did not say. A pair under 700 px wide was shown stacked
item       id of an item of study.json, from 0; one item is one question on one prompt
of         the item that this one repeats, else null
prompt     the prompt's key, a whole number that all items on the same words share; null in a poll
question   the question's name, as in study.json's kind.questions: "fidelity"
role       "main", "gold", "repeat" or "same" (the same picture twice)
band       the percentile of the subset as text, or the name of a set of questions; null without any
kind       "preference", "grade", "choice", "poll", or another file of experiments/rating/kinds
shown      names in screen order, the left one first. Methods are "first", "second", "third", ..., in the order of
           `runs`; of a gold item "good" and "bad", "bad2", ...; of the same picture twice "same" and "same2"; in a poll
           its answers in their words
value      what was pressed, 1 to the number of answers, in screen order
turned     the value without the screen. preference: 2, 1, 0, -1, -2 from "shown's earlier name much better" to "much
           worse", where earlier is as in study.json's item ("first" before "second", "good" before "bad"), so that 2
           says "first much better" whichever side it was on. grade: the grade, 1 to 5, of the one method shown. choice
           and poll: the name chosen, a text
passed     of a gold item whether the answer is the right one; null for other roles
active_ms  from the pictures' appearance to the answer, less hidden and idle time (beyond 30 s without a sign of life)
total_ms   the same with that time
position   of the item in the rater's plan, from 0, practice included
seq        the answer's place among all that this rater gave, corrected ones too, from 1

study.json also holds, for the analysis: kind (with questions [{name, text, options}]), methods, items, slots
[{slot, group, plan}], rules and claims.
rules  {"gold_failed": 0.5, "fast_ms": 1000, "fast_share": 0.25}: a rater is left out of the main result who fails more
       than that share of the gold items, or gives more than that share of the main answers in less active time.
claims [{"say": "...", "higher": "first", "lower": "second", "question": null, "group": null, "band": null}]: that the
       higher is preferred, graded higher, or chosen more often than the lower (names as in `turned`; lower null: more
       often than chance, 1 / number of answers); question, group and band narrow the answers, null takes all.
key.json {"labels": {"first": "...", ...}, "runs": {"first": "...", ...}, "pictures": {NAME: {"method", "run", "file",
       "prompt_index", "seed", "sha256"}}}; a picture NAME lies in pictures/NAME.png beside it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.files import write
from experiments.rating.store import Store


def lines(store: Store) -> Iterator[dict[str, Any]]:
    """Yields the answers that count, as the lines of answers.jsonl."""
    study, raters = store.study, {rater.slot: rater for rater in store.raters()}
    for answer in store.counted():
        item, shown = study.at(answer.slot, answer.position)
        if item.role == "practice":
            continue
        question = study.questions[item.question]
        yield {
            "study": store.name,
            "simulated": store.simulated,
            "slot": answer.slot,
            "group": raters[answer.slot].group,
            "device": raters[answer.slot].device,
            "item": item.id,
            "of": item.of,
            "prompt": item.prompt,
            "question": item.question,
            "role": item.role,
            "band": item.band,
            "kind": study.kind_name,
            "shown": list(shown),
            "value": answer.value,
            "turned": study.asks.turned(question, answer.value, shown),
            "passed": study.asks.passed(question, answer.value, shown) if item.role == "gold" else None,
            "active_ms": answer.active_ms,
            "total_ms": answer.total_ms,
            "position": answer.position,
            "seq": answer.seq,
        }


def export(store: Store, folder: Path) -> Path:
    """Writes answers.jsonl into the folder, whole or not at all, and returns its path."""
    path = folder / "answers.jsonl"
    write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(store)))
    return path
