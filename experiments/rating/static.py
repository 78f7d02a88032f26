"""A study as a folder that needs no server: raters open its page, and send back the file that it saves."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.files import UserError
from experiments.rating.store import CONSENTED, WITHDRAWN, Answer, Store, answer_of
from experiments.rating.study import Study

PAGE = Path(__file__).parent / "page"
DAY = 946684800  # all files are of 2000-01-01, so that none tells when it was made


def write(folder: Path, study: Study, name: str) -> Path:
    """Writes FOLDER/static anew, whole or not at all, and returns it. Nothing in it tells methods or roles."""
    out, temporary = folder / "static", folder / "static.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(folder / "pictures", temporary / "pictures")
        for path in PAGE.iterdir():
            shutil.copyfile(path, temporary / path.name)
        page = (PAGE / "index.html").read_text(encoding="utf-8")
        script = '<script src="app.js">'
        assert script in page
        (temporary / "index.html").write_text(page.replace(script, f'<script src="study.js"></script>\n{script}'))
        plans = {slot.slot: plan(study, slot.slot) for slot in study.slots}
        told = json.dumps({"study": name, "slots": plans}, ensure_ascii=False)
        (temporary / "study.js").write_text(f"window.STUDY = {told};\n", encoding="utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            os.utime(path, (DAY, DAY))
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def plan(study: Study, slot: int) -> dict[str, Any]:
    """Returns all that the page shows one rater."""
    count = len(study.slots[slot - 1].plan)
    return {"intro": study.intro(slot), "trials": [study.trial(slot, position) for position in range(count)]}


def merge(store: Store, paths: Iterable[Path]) -> tuple[int, int]:
    """Stores the answers of files that the page saved. Returns how many were new, and how many were there already.

    Raises UserError, with nothing of that file stored, for one that is of another study or was not saved by the page.
    """
    added = doubles = 0
    for path in paths:
        slot, device, answers = read(path, store)
        before = store.count()
        try:
            store.merge(slot, device, answers)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        added += store.count() - before
        doubles += len(answers) - (store.count() - before)
    return added, doubles


def read(path: Path, store: Store) -> tuple[int, str, list[Answer]]:
    """Returns the slot, the device and the answers of a file that the page saved."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        slot, plans = told["slot"], {rater.slot: rater for rater in store.raters()}
        if told["study"] != store.name:
            raise UserError(f"is of study {told['study'][:12]}, not of {store.name[:12]}")
        if slot not in plans:
            raise UserError(f"is of rater {slot}, whom the study does not have")
        if plans[slot].consent == WITHDRAWN:
            raise UserError(f"is of rater {slot}, who withdrew")
        if told["consent"] != CONSENTED:
            return slot, "", []
        if not re.fullmatch(r"|(fine|coarse) \d{1,5}", str(told["device"])):
            raise UserError(f"device {told['device']!r}: must be like 'fine 1200'")
        return slot, told["device"], [answer_of(row, store.study, slot) for row in told["answers"]]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: is no file that the page saved: {error!r}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
