"""What the emoji world's judge finds in pictures of what their prompts ask for."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.emoji.judge import WEIGHTS, JudgeConfig, JudgeOutput, load_judge, load_natural
from experiments.files import sha256
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.estimates import Estimate
from experiments.metrics.features import judge_outputs
from experiments.metrics.folders import FinishedRun

# words that part an object's phrase from what stands before it
BETWEEN = {"a", "an", "the", "and", "or", "of", "to", "in", "on", "at", "with", "by", "next", "beside", "above",
           "below", "behind", "under", "over", "near", "front", "left", "right", "background"}  # fmt: skip
MOSTLY = 0.1  # the share of a colour from which on a concept has it by nature, so that no leak of it can be seen
Natural = dict[str, dict[str, float]]  # concept -> colour word -> share, see `load_natural`


@dataclass(frozen=True)
class Asked:
    """An object that a prompt names, with its colour word if it has one."""

    concept: str
    colour: str | None


@dataclass(frozen=True)
class JudgeMetric:
    """Shares. A picture's objects are those that its prompts name (its stages' too), or those of `prompt` if given.

    value: of the objects, those found (presence logit above 0). colours: of the objects with a colour word, those found
    and of that colour before all others. all_found: of the pictures, those with all their objects; both: the same of
    those that ask for two or more; all_right: those with all their colours right, too. purity: of the objects that have
    a colour word and are found, how much is in that colour (its probability, mean over the object's pixels), so that
    another's colour on a part of one tells; mean over pictures. leak: of the objects without a colour word that are
    found, how much is in the colour that is another's (its probability, as in purity, where the styles draw the concept
    in other colours); mean over pictures, less is better. found/CONCEPT: of the pictures that ask for it, those
    where it is found.
    """

    weights: str | None = None
    prompt: str | None = None

    @torch.inference_mode()
    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        folder = Path(self.weights) if self.weights else WEIGHTS
        judge, natural = load_judge(folder, bench.device), load_natural(folder)
        asked = [parse((self.prompt,) if self.prompt else texts, judge.config) for texts in run.texts]
        if not any(asked):
            raise Unmeasurable(f"no prompt names anything that the judge knows ({', '.join(judge.config.concepts)})")
        scores: list[dict[str, Any]] = []
        for i, output in judge_outputs(judge, run, bench):
            some = asked[i : i + bench.batch_size]
            scores += [judged(output, b, objects, judge.config, natural) for b, objects in enumerate(some)]

        objects = [score["objects"] for score in scores]
        found = [sum(thing["found"] for thing in things) for things in objects]
        right = [sum(thing["right"] or False for thing in things) for things in objects]
        coloured = [sum(thing["right"] is not None for thing in things) for things in objects]
        value = bench.bootstrap.ratio(found, [len(things) for things in objects], run.captions)
        details = {}
        if any(coloured):
            details["colours"] = bench.bootstrap.ratio(right, coloured, run.captions)
        for name in ("all_found", "both", "all_right", "purity", "leak"):
            if any(score[name] is not None for score in scores):
                details[name] = bench.bootstrap.mean([score[name] for score in scores], run.captions)
        for concept in judge.config.concepts:
            shares = [next((t["found"] for t in things if t["concept"] == concept), None) for things in objects]
            if any(share is not None for share in shares):
                details[f"found/{concept}"] = bench.bootstrap.mean(shares, run.captions)

        per_image = [{"file": r["file"], **score} for r, score in zip(run.records, scores, strict=True)]
        about = {"judge": {"weights_sha256": sha256(folder / "model.safetensors"), **asdict(judge.config)}}
        return Result(value, details, per_image, about, [*silent(asked), *certain({"judge": value, **details})])


def parse(texts: tuple[str, ...], config: JudgeConfig) -> list[Asked]:
    """Returns the objects that the texts name, in their order, once each; of one with and without a colour, that with.

    An object's colour word stands before its noun, with one word between them at most: "a small blue noto cat".
    """
    nouns = "|".join(re.escape(concept) for concept in sorted(config.concepts, key=len, reverse=True))
    found = dict[Asked, None]()
    for text in texts:
        end = 0
        for match in re.finditer(rf"\b(?:{nouns})\b", text.lower()):
            phrase = re.findall(r"[\w-]+|[^\w\s]", text.lower()[end : match.start()])
            found[Asked(match.group(), colour_word(phrase, config.colours))] = None
            end = match.end()
    coloured = {thing.concept for thing in found if thing.colour}
    return [thing for thing in found if thing.colour or thing.concept not in coloured]


def colour_word(phrase: list[str], colours: tuple[str, ...]) -> str | None:
    """Returns the colour of a noun, given the words and marks before it."""
    for word in phrase[:-3:-1]:
        if word in colours:
            return word
        if word in BETWEEN or not word[0].isalnum():
            return None
    return None


def judged(
    output: JudgeOutput, b: int, asked: list[Asked], config: JudgeConfig, natural: Natural | None = None
) -> dict[str, Any]:
    """Returns the scores of picture b of a batch, None where it was asked for nothing of the kind."""
    things: list[dict[str, Any]] = []
    for thing in asked:
        k = config.concepts.index(thing.concept)
        found = bool(output.presence[b, k] > 0)
        colours = output.colour_of(k)[b]
        seen = config.colours[int(colours.argmax())]
        right = found and seen == thing.colour if thing.colour else None
        purity = colours[config.colours.index(thing.colour)].item() if thing.colour and found else None
        others = alien(thing, asked, natural) if found and natural and not thing.colour else []
        leak = max((colours[config.colours.index(word)].item() for word in others), default=None)
        told = {"concept": thing.concept, "colour": thing.colour, "found": found, "seen": seen, "right": right}
        things.append({**told, "purity": purity, "leak": leak})
    right_colours = [thing["right"] for thing in things if thing["right"] is not None]
    pure = [thing["purity"] for thing in things if thing["purity"] is not None]
    leaks = [thing["leak"] for thing in things if thing["leak"] is not None]
    all_found = all(thing["found"] for thing in things) if things else None
    return {
        "value": sum(thing["found"] for thing in things) / len(things) if things else None,
        "colours": sum(right_colours) / len(right_colours) if right_colours else None,
        "all_found": all_found,
        "both": all_found if len(things) > 1 else None,
        "all_right": all_found and all(right_colours) if things else None,
        "purity": sum(pure) / len(pure) if pure else None,
        "leak": sum(leaks) / len(leaks) if leaks else None,
        "objects": things,
    }


def alien(thing: Asked, asked: list[Asked], natural: Natural) -> list[str]:
    """Returns the colours of other objects that this one does not have by nature."""
    others = dict.fromkeys(other.colour for other in asked if other.colour and other is not thing)
    return [colour for colour in others if natural[thing.concept][colour] < MOSTLY]


def silent(asked: list[list[Asked]]) -> list[str]:
    """Warns of pictures that could not be judged."""
    count = sum(not objects for objects in asked)
    return [f"{count} pictures left out: their prompts name nothing that the judge knows"] if count else []


def certain(shares: dict[str, Estimate]) -> list[str]:
    """Warns of shares whose resamples are all alike: the bootstrap knows nothing of what is rare."""
    names = [name for name, e in shares.items() if e.low is not None and e.low == e.high]
    return (
        [f"all alike, so the interval is no interval (the truth lies within 3/count): {', '.join(names)}"]
        if names
        else []
    )
