"""GenEval's list of scenes (Ghosh et al. 2023, arXiv 2310.11513), drawn as its authors drew it.

Classes are COCO's, under the names that GenEval's judge knows them by. Six tasks: an object; two; two to four of a
kind; one in a colour; two in a position; two in a colour each. People get no colour. PUBLISHED is the seed of the
paper's own 553 prompts; another one makes another sample by the same rules.
"""

from collections.abc import Callable
from itertools import chain, zip_longest
from typing import Any

import numpy as np

Scene = dict[str, Any]  # tag, include, exclude (of counting), prompt: what GenEval's judge reads

CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
NUMBERS = ("two", "three", "four")
DRAWS = 100  # of each task but the first, which has each class once; what comes again is left out
PUBLISHED = 43


def listed(seed: int) -> list[Scene]:
    """Returns some 550 different scenes, task after task, as GenEval lists them."""
    rng, found = np.random.default_rng(seed), dict[str, Scene]()
    drawn = [single_object(name) for name in rng.choice(CLASSES, len(CLASSES), replace=False).tolist()]
    drawn += [{"tag": task.__name__, **task(rng)} for task in TASKS for _ in range(DRAWS)]
    for scene in drawn:
        found.setdefault(scene["prompt"], scene)
    return list(found.values())


def scenes(seed: int) -> list[Scene]:
    """Returns the same scenes; tasks take turns, so that the first few are of all."""
    by_task: dict[str, list[Scene]] = {}
    for scene in listed(seed):
        by_task.setdefault(scene["tag"], []).append(scene)
    return [scene for scene in chain.from_iterable(zip_longest(*by_task.values())) if scene is not None]


def single_object(name: str) -> Scene:
    return {"tag": "single_object", "include": [one(name)], "prompt": f"a photo of {a(name)}"}


def two_object(rng: np.random.Generator) -> Scene:
    names = classes(rng, 2)
    return {"include": [one(name) for name in names], "prompt": "a photo of {} and {}".format(*map(a, names))}


def counting(rng: np.random.Generator) -> Scene:
    (name,), i = classes(rng, 1), int(rng.integers(len(NUMBERS)))
    include, exclude = ({"class": name, "count": count} for count in (i + 2, i + 3))
    return {"include": [include], "exclude": [exclude], "prompt": f"a photo of {NUMBERS[i]} {plural(name)}"}


def colors(rng: np.random.Generator) -> Scene:
    (name,), (colour,) = classes(rng, 1, people=False), rng.choice(COLOURS, 1).tolist()
    return {"include": [one(name, colour)], "prompt": f"a photo of {a(colour)} {name}"}


def position(rng: np.random.Generator) -> Scene:
    name, other = classes(rng, 2)
    where = str(rng.choice(POSITIONS))
    include = [one(other), {**one(name), "position": [where, 0]}]
    return {"include": include, "prompt": f"a photo of {a(name)} {where} {a(other)}"}


def color_attr(rng: np.random.Generator) -> Scene:
    things = list(zip(classes(rng, 2, people=False), rng.choice(COLOURS, 2, replace=False).tolist(), strict=True))
    told = " and ".join(f"{a(colour)} {name}" for name, colour in things)
    return {"include": [one(*thing) for thing in things], "prompt": f"a photo of {told}"}


def classes(rng: np.random.Generator, count: int, people: bool = True) -> list[str]:
    """Draws different classes, with or without people."""
    return rng.choice(CLASSES if people else CLASSES[1:], count, replace=False).tolist()


def one(name: str, colour: str | None = None) -> Scene:
    return {"class": name, "count": 1} | ({} if colour is None else {"color": colour})


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """As GenEval writes it, "skises" and "sheeps" among it."""
    return noun + ("es" if noun.endswith("s") else "s")


TASKS: tuple[Callable[[np.random.Generator], Scene], ...] = (two_object, counting, colors, position, color_attr)
