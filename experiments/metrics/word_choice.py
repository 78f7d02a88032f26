"""Whether a picture shows the word of its prompt and not another in its place: CLIP's choice among rival words."""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiments.files import UserError
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.clip import clip_meant, load_clip
from experiments.metrics.folders import FinishedRun, read


@dataclass(frozen=True)
class WordChoice:
    """The share of pictures nearer to their prompt than to the same prompt with another of `words` in its word's place.

    Counted are the pictures whose prompt holds exactly one of the words; chance is 1 / the number of words. `model` and
    `pretrained` as in `ClipScore`. The details are the shares by word.
    """

    words: list[str]
    model: str | None = None
    pretrained: str | None = None

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        if len(set(self.words)) < 2:
            raise UserError(f"words={self.words}: at least two")
        rivals = [self.rivals(texts) for texts in run.captions]
        asked = [i for i, prompts in enumerate(rivals) if prompts]
        if not asked:
            raise Unmeasurable(f"no prompt holds exactly one of {', '.join(self.words)}")
        model, pretrained = clip_meant(self.model, self.pretrained, run)
        network, preprocess, tokenizer, about = load_clip(model, pretrained, bench.device)
        right: list[float | None] = [None] * len(rivals)
        margins: list[float | None] = [None] * len(rivals)
        with torch.inference_mode():
            for i in tqdm(asked, desc="word_choice", leave=False):
                image = preprocess(read(run.pictures.files[i]))[None].to(bench.device)
                seen = F.normalize(network.encode_image(image).float(), dim=-1)
                texts = F.normalize(network.encode_text(tokenizer(rivals[i]).to(bench.device)).float(), dim=-1)
                own, *others = (100 * texts @ seen[0]).tolist()
                right[i], margins[i] = float(own > max(others)), own - max(others)
        details = {"margin": bench.bootstrap.mean(margins, run.captions)}
        for word in self.words:
            some = [
                r if r is not None and self.word(c) == word else None for r, c in zip(right, run.captions, strict=True)
            ]
            if any(value is not None for value in some):
                details[word] = bench.bootstrap.mean(some, run.captions)
        per_image = [
            {"file": r["file"], "value": value, "margin": margin}
            for r, value, margin in zip(run.records, right, margins, strict=True)
        ]
        left_out = len(rivals) - len(asked)
        warnings = (
            [f"{left_out} pictures left out: their prompts hold none of the words, or several"] if left_out else []
        )
        return Result(bench.bootstrap.mean(right, run.captions), details, per_image, about, warnings)

    def word(self, caption: tuple[str, ...]) -> str | None:
        """Returns the one of the words in a picture's prompt; None if it has several prompts, or words, or none."""
        found = [word for word in self.words if len(caption) == 1 and re.search(rf"\b{re.escape(word)}\b", caption[0])]
        return found[0] if len(found) == 1 else None

    def rivals(self, caption: tuple[str, ...]) -> list[str]:
        """Returns the prompt, and the prompts with the other words in its place; none if it has not one word."""
        word = self.word(caption)
        if word is None:
            return []
        return [caption[0], *(exchanged(caption[0], word, other) for other in self.words if other != word)]


def exchanged(prompt: str, word: str, other: str) -> str:
    """Returns the prompt with another word in a word's place, and the article that fits it: "an A", "a B"."""

    def replaced(match: re.Match[str]) -> str:
        article = match["article"]
        if article:
            fitting = "an " if other[:1].lower() in "aeiou" else "a "
            article = fitting.capitalize() if article[0].isupper() else fitting
        return f"{article or ''}{other}"

    return re.sub(rf"\b(?P<article>[Aa]n? )?{re.escape(word)}\b", replaced, prompt)
