"""Makes a study's folder from pictures: items, plans, the key that is never served, and clean copies."""

import io
import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from experiments.files import CONF, UserError, sha256
from experiments.metrics.folders import read
from experiments.rating.join import Source, Unit, join, labels, source
from experiments.rating.kinds import METHODS, Kind, Question, kind_of
from experiments.rating.plan import colours, deal, merged, orders, repeated, spaced
from experiments.rating.power import Design
from experiments.rating.study import Item, Slot, Study

Shown = tuple[Unit, int, int | None]  # whose picture it is: unit, method, and the seed of noise over it, if any
Trial = tuple[int, tuple[int, ...]]  # an item, and the order of what it shows
SECONDS = 8  # of an answer, for the time that raters are told
LONG = 20 * 60 // SECONDS  # trials of a sitting that is too long
NOISE = 100.0  # standard deviation, of 255 grey values, that spoils a picture


@dataclass(frozen=True)
class Wanted:
    """The numbers of a study. Items in a rater's plan are for every `per` main ones, begun or whole."""

    groups: dict[str, int]  # of raters, and how many they are
    answers: int | None  # raters of each group who see a unit; None: all
    practice: int = 3
    per: int = 50
    gold: int = 3
    repeats: int = 3
    same: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.groups or not all(type(n) is int and n > 0 for n in self.groups.values()):
            raise UserError(f"groups={self.groups}: must name one or more groups with at least 1 rater each")
        smallest = min(self.groups.values())
        if self.answers is not None and not (type(self.answers) is int and 1 <= self.answers <= smallest):
            raise UserError(f"answers={self.answers}: must be from 1 to {smallest}, the raters of the smallest group")


@dataclass
class Items:
    """Items so far, and the pictures that they show: each showing has a copy and a random name of its own."""

    units: Sequence[Unit]
    sources: Sequence[Source]
    items: list[Item] = field(default_factory=list)
    key: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    repeats: dict[int, Item] = field(default_factory=dict)

    def add(self, question: Question, role: str, unit: Unit, shows: dict[str, Shown]) -> Item:
        """Adds an item that shows these pictures."""
        named: dict[str, str | None] = {name: self.picture(*of) for name, of in shows.items()}
        id = len(self.items)
        item = Item(id, question["name"], role, unit.text, unit.prompt, unit.band, named, unit.size)
        self.items.append(item)
        return item

    def again(self, id: int) -> Item:
        """Adds the repeat of an item, unless it has one."""
        if id not in self.repeats:
            item = self.items[id]
            fresh = {
                name: picture and self.named(self.pictures[picture], self.key[picture])
                for name, picture in item.shows.items()
            }
            self.repeats[id] = replace(item, id=len(self.items), role="repeat", shows=fresh, of=id)
            self.items.append(self.repeats[id])
        return self.repeats[id]

    def picture(self, unit: Unit, method: int, noise: int | None = None) -> str:
        path, image = unit.files[method], read(unit.files[method])
        told = {
            "method": METHODS[method],
            "run": str(self.sources[method].folder),
            "file": str(path.relative_to(self.sources[method].folder)),
            "prompt_index": unit.place[0],
            "seed": unit.place[1],
            "sha256": sha256(path),
        }
        if noise is not None:
            image, told = spoilt(image, noise), told | {"noise": noise}
        return self.named(clean(image), told)

    def named(self, content: bytes, told: dict[str, Any]) -> str:
        name = secrets.token_hex(16)
        self.pictures[name], self.key[name] = content, told
        return name


def clean(image: Image.Image) -> bytes:
    """Returns the picture as a PNG of its pixels alone, which becomes the same bytes when encoded anew."""
    content = io.BytesIO()
    image.convert("RGB").save(content, format="PNG", compress_level=6)
    return content.getvalue()


def spoilt(image: Image.Image, seed: int) -> Image.Image:
    """Returns the picture under heavy noise."""
    x = np.asarray(image, dtype=np.float32)
    noisy = x + NOISE * np.random.default_rng(seed).standard_normal(x.shape, dtype=np.float32)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def unlike(unit: Unit, units: Sequence[Unit], rng: Random) -> Unit | None:
    """Returns a unit of the same size, of words that share as few as any with this one's; None without another."""
    words = set(unit.text.lower().split())
    others = [u for u in rng.sample(units, len(units)) if u.prompt != unit.prompt and u.size == unit.size]
    return min(others, key=lambda u: len(words & set(u.text.lower().split())), default=None)


def add_known(made: Items, kind: Kind, role: str, count: int, rng: Random) -> list[Item]:
    """Adds items whose right answer is known: by turns spoilt by noise, and with the pictures of another prompt.

    A single picture is always spoilt by noise, which is poor whatever is asked. Questions take turns.
    """
    names, added = kind.gold(METHODS[: len(made.sources)]), list[Item]()
    for i in range(count if names else 0):
        unit, method = rng.choice(made.units), rng.randrange(len(made.sources))
        shows = dict[str, Shown]()
        for name in names:
            other = unlike(unit, made.units, rng) if i % 2 and len(names) > 1 else None
            bad = (other, method, None) if other else (unit, method, rng.randrange(2**32))
            shows[name] = (unit, method, None) if name == "good" else bad
        added.append(made.add(kind.questions[i % len(kind.questions)], role, unit, shows))
    return added


def add_same(made: Items, kind: Kind, count: int, rng: Random) -> list[Item]:
    """Adds items that show one picture under several names. Questions take turns."""
    added = []
    for i in range(count if kind.same() else 0):
        shown = rng.choice(made.units), rng.randrange(len(made.sources)), None
        question = kind.questions[i % len(kind.questions)]
        added.append(made.add(question, "same", shown[0], dict.fromkeys(kind.same(), shown)))
    return added


def main_items(made: Items, kind: Kind) -> list[list[int]]:
    """Adds what the study is about. Returns the items of each unit, which a rater sees all or none of."""
    if not kind.pictures:
        for q in kind.questions:
            made.items += [
                Item(len(made.items), q["name"], "main", None, None, None, dict.fromkeys(names), None)
                for names in kind.plays(q, ())
            ]
        return [[item.id for item in made.items]]
    methods = METHODS[: len(made.sources)]
    of_units = [
        [
            made.add(q, "main", unit, {name: (unit, METHODS.index(name), None) for name in names}).id
            for q in kind.questions
            for names in kind.plays(q, methods)
        ]
        for unit in made.units
    ]
    if not all(of_units):
        raise UserError(f"runs: {len(methods)} of them do not make a trial of this kind")
    return of_units


def plans(made: Items, kind: Kind, wanted: Wanted) -> list[Slot]:
    """Adds the items, and returns a plan for each rater."""
    rng = Random(wanted.seed)
    of_units = main_items(made, kind)
    most = max(
        len(of_units[0]) * math.ceil(len(of_units) * (wanted.answers or raters) / raters)
        for raters in wanted.groups.values()
    )
    blocks = math.ceil(most / wanted.per)
    practice = add_known(made, kind, "practice", wanted.practice, rng)
    known = [
        *add_known(made, kind, "gold", wanted.gold * blocks, rng),
        *add_same(made, kind, wanted.same * blocks, rng),
    ]
    slots = list[Slot]()
    for group, raters in wanted.groups.items():
        for trials in balanced(made.items, of_units, raters, wanted.answers or raters, rng):
            slot = len(slots)
            begun = math.ceil(len(trials) / wanted.per)
            extras = {"gold": wanted.gold * begun, "same": wanted.same * begun, "repeat": wanted.repeats * begun}
            plan = [(item.id, turned(item, slot + i)) for i, item in enumerate(practice)]
            plan += sequence(made, kind, trials, known, extras if kind.pictures else {}, slot, rng)
            slots.append(Slot(slot + 1, group, tuple(plan)))
    return slots


def balanced(
    items: Sequence[Item], of_units: Sequence[Sequence[int]], raters: int, each: int, rng: Random
) -> list[list[Trial]]:
    """Returns the main trials of each rater of a group, with orders that are balanced by rater and by item."""
    dealt = deal(len(of_units), raters, each, rng)
    edges = [(rater, item) for unit, seen in zip(of_units, dealt, strict=True) for rater in seen for item in unit]
    trials: list[list[Trial]] = [[] for _ in range(raters)]
    for count in {len(items[item].shows) for _, item in edges}:
        some = [(rater, item) for rater, item in edges if len(items[item].shows) == count]
        ways = orders(count)
        for (rater, item), colour in zip(some, colours(some, len(ways), rng), strict=True):
            trials[rater].append((item, ways[colour]))
    return trials


def sequence(
    made: Items,
    kind: Kind,
    trials: Sequence[Trial],
    known: Sequence[Item],
    extras: dict[str, int],
    slot: int,
    rng: Random,
) -> list[Trial]:
    """Returns a rater's trials, question by question, beginning with another one for each slot, and known ones and
    repeats among them: so many of each role as `extras` says."""
    questions, found = [q["name"] for q in kind.questions], list[Trial]()
    left = {role: [item for item in known if item.role == role][:count] for role, count in extras.items()}
    for i in range(len(questions)):
        question = questions[(slot + i) % len(questions)]
        mine = [trial for trial in trials if made.items[trial[0]].question == question]
        before = [made.items[item].prompt for item, _ in found]
        main = spaced(mine, lambda trial: made.items[trial[0]].prompt, rng, before)
        among = [
            (rng.randint(1, len(main)), (item.id, turned(item, slot + j)))
            for j, item in enumerate(item for some in left.values() for item in some if item.question == question)
        ]
        repeats = len(range(i, extras.get("repeat", 0), len(questions)))
        among += [
            (after, (made.again(main[place][0]).id, main[place][1][::-1]))
            for place, after in repeated(main, repeats, rng)
        ]
        found += merged(main, among)
    return found


def turned(item: Item, turn: int) -> tuple[int, ...]:
    """Returns one of an item's orders, each in its turn."""
    ways = orders(len(item.shows))
    return ways[turn % len(ways)]


def write(folder: Path, study: Study, made: Items) -> None:
    """Writes a study's folder whole or not at all. Raises UserError if there is one already."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"study={folder}: is there already, and a study never changes: choose another folder")
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "pictures").mkdir(parents=True)
        for name, content in made.pictures.items():
            (temporary / "pictures" / f"{name}.png").write_bytes(content)
        (temporary / "study.json").write_text(study.json(), encoding="utf-8")
        key = {
            "labels": {METHODS[i]: s.label for i, s in enumerate(made.sources)},
            "runs": {METHODS[i]: str(s.folder) for i, s in enumerate(made.sources)},
            "pictures": made.key,
        }
        (temporary / "key.json").write_text(json.dumps(key, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        (temporary / "key.json").chmod(0o600)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def study(cfg: dict[str, Any]) -> tuple[Study, Items]:
    """Makes a study of the settings of conf/raters.yaml. Raises UserError naming what is wrong."""
    if cfg["kind"] is None:
        raise UserError(
            f"kind=null: must be one of {', '.join(p.stem for p in sorted((CONF / 'kind').glob('*.yaml')))}"
        )
    kind, wanted = kind_of(cfg["kind"]), wanted_of(cfg)
    folders = [Path(folder) for folder in cfg["runs"]]
    if kind.pictures != bool(folders):
        raise UserError(f"runs={cfg['runs']}: " + ("no folders of pictures" if kind.pictures else "a poll shows none"))
    names = cfg["labels"] or labels(folders)
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise UserError(f"labels={names}: must be one for each of the {len(folders)} runs, all different")
    claims = check(cfg, kind, len(folders))
    sources = [source(folder, str(name)) for folder, name in zip(folders, names, strict=True)]
    subset, captions = (Path(cfg[key]) if cfg[key] is not None else None for key in ("subset", "captions"))
    made = Items(join(sources, subset, captions, cfg["seeds"]) if sources else [], sources)
    slots = plans(made, kind, wanted)
    bands = sorted({item.band for item in made.items if item.band is not None})
    wrong = [claim["band"] for claim in claims if claim["band"] not in (None, *bands)]
    if bands and wrong:  # without any, a claim of one cannot be told
        raise UserError(f"claims: band={wrong[0]}: must be one of {', '.join(bands)}")
    minutes = minutes_of(max(len(slot.plan) for slot in slots))
    return Study(
        kind=cfg["kind"],
        title=cfg["title"],
        texts=texts(cfg["about"], minutes, kind.pictures),
        break_after=cfg["break_after"],
        methods=METHODS[: len(sources)],
        items=tuple(made.items),
        slots=tuple(slots),
        rules=cfg["rules"],
        claims=claims,
        seed=wanted.seed,
    ), made


def wanted_of(cfg: dict[str, Any]) -> Wanted:
    groups = {"all": 20} if cfg["groups"] is None else cfg["groups"]
    return Wanted(groups, **{key: cfg[key] for key in (f.name for f in fields(Wanted)) if key != "groups"})


def check(cfg: dict[str, Any], kind: Kind, methods: int) -> list[dict[str, Any]]:
    """Returns the claims, each with all keys. Raises UserError for one that the analysis could not judge."""
    groups, questions = [set(cfg["groups"] or {"all"}), {question["name"] for question in kind.questions}]
    options = {name for q in kind.questions for play in kind.plays(q, METHODS[:methods]) for name in play}
    for claim in cfg["claims"]:
        known = {"say": None, "higher": options, "lower": options, "question": questions, "group": groups, "band": None}
        if not isinstance(claim, dict):
            raise UserError(f"claims: {claim}: must be settings: say, higher, and perhaps lower, question, group, band")
        if claim.keys() - known.keys() or not {"say", "higher"} <= claim.keys():
            raise UserError(f"claims: {claim}: must have say and higher, and may have lower, question, group, band")
        for key, names in known.items():
            if names is not None and claim.get(key) is not None and claim[key] not in names:
                raise UserError(f"claims: {key}={claim[key]}: must be one of {', '.join(sorted(names))}")
    told = [dict.fromkeys(("question", "group", "band")) | claim for claim in cfg["claims"]]
    return [claim | {"band": None if claim["band"] is None else str(claim["band"])} for claim in told]


def texts(about: dict[str, str], minutes: int, pictures: bool) -> dict[str, list[str]]:
    """Returns what raters are told before they consent, and how to answer."""
    information = [
        f"{about['who']} would like your help, {about['purpose']}. It takes about {minutes} minutes. {about['pay']}",
        "You are shown no advertisement and nothing is sold. You have to be of age. " + about["warning"]
        if pictures
        else "You have to be of age.",
        "Stored are your answers, how long each took, the day, whether you use a mouse or a finger, and roughly how "
        "wide your window is. Your name, your address and your browser are not. They are kept "
        f"{about['kept']}; the answers may be published, and nothing in them tells who you are.",
        "Taking part is voluntary. You may stop at any time by closing the page, and go on later with the same link. "
        f"If you want what you answered to be deleted, write to {about['contact']} and give the number that "
        "stands at the foot of this page.",
    ]
    instructions = [
        "Judge what you see; there is no right or wrong answer. Some things may come up more than once.",
        "Answer with the buttons, or with the keys 1, 2, 3 and so on in the order of the buttons. The Backspace key, "
        "or the button for it, takes you back to your last answer.",
    ]
    if pictures:
        instructions.insert(0, "You see words, and pictures that were made from them.")
    return {"information": information, "instructions": instructions}


def minutes_of(trials: int) -> int:
    return math.ceil(trials * SECONDS / 60)


def described(study: Study) -> str:
    """Returns what was made, and the study's power, as lines to print."""
    roles = Counter(item.role for item in study.items)
    lines = [f"{len(study.items)} items: " + ", ".join(f"{n} {role}" for role, n in roles.items())]
    for group in dict.fromkeys(slot.group for slot in study.slots):
        slots = [slot for slot in study.slots if slot.group == group]
        seen = {
            (slot.slot, item.prompt) for slot in slots for i, _ in slot.plan if (item := study.items[i]).role == "main"
        }
        prompts = {prompt for _, prompt in seen}
        trials = sorted({len(slot.plan) for slot in slots})
        told = f"group {group}: {len(slots)} raters, {' or '.join(map(str, trials))} trials each"
        lines.append(
            f"{told}, about {minutes_of(trials[-1])} minutes" + ", longer than people attend" * (trials[-1] > LONG)
        )
        each = round(len(seen) / len(prompts))
        lines.append(str(study.asks.analysis.power(len(study.methods), Design(len(prompts), len(slots), each))))
    return "\n".join(lines)
