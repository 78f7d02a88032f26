"""Pictures of attention maps: words as heat over a picture, and patches in the colours of the words that own them."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from experiments.attention.maps import StepMaps, average, owner_map
from experiments.pictures import fit, sheet, to_image
from ldm.text import Span
from samplers import Step

GAP, LINE, STRIP = 4, 18, 128  # pixels: between two pictures, of a line of text, of a word on its colour
FONT, SMALL = ImageFont.load_default(13), ImageFont.load_default(11)
# Sasha Trubetskoy's distinct colours, given to words in order, and from the start again if there are more
HEX = "e6194b3cb44bffe1194363d8f58231911eb442d4f4f032e6bfef45fabed4469990dcbeff9a6324fffac8800000aaffc3808000000075"
PALETTE = textwrap.wrap(HEX, 6)
NO_WORD = "#a9a9a9"
# from no heat to the most: black, purple, red, orange, pale yellow
HEAT = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]) / 255


@dataclass(frozen=True)
class Moment:
    """A step, the picture [3, H, W] of the x_0 it predicted, and what was recorded in it."""

    step: Step
    image: Tensor
    seen: StepMaps


def labels(words: Sequence[Span]) -> list[str]:
    """The words, repeated ones told apart: "a", "cat", "a (2)"."""
    plain = [word.word for word in words]
    counts = [plain[: i + 1].count(word) for i, word in enumerate(plain)]
    return [word if count == 1 else f"{word} ({count})" for word, count in zip(plain, counts, strict=True)]


def colours_of(moments: Sequence[Moment]) -> dict[str, str]:
    """A colour for each word of all stages."""
    words = dict.fromkeys(label for moment in moments for label in labels(moment.seen.words))
    return {word: f"#{PALETTE[i % len(PALETTE)]}" for i, word in enumerate(words)}


def words_sheet(picture: Tensor, moments: Sequence[Moment], words: Sequence[str]) -> Image.Image:
    """Rows: x_0, and each word's attention over the finished picture [3, H, W]; empty where its stage does not rule."""
    rows: list[list[Image.Image | None]] = [[to_image(moment.image) for moment in moments]]
    rows += [[overlay(picture, moment, word) for moment in moments] for word in words]
    return sheet(rows, ["x_0 predicted", *words], [step_label(m.step) for m in moments], cell_of(picture))


def owners_sheet(moments: Sequence[Moment], colours: dict[str, str]) -> Image.Image:
    """Rows: x_0, who owns which patch by the votes of all layers, and by each layer's."""
    layers = moments[0].seen.votes
    rows = [[to_image(moment.image) for moment in moments]]
    rows += [[owners(moment, list(layers), colours) for moment in moments]]
    rows += [[owners(moment, [layer], colours) for moment in moments] for layer in layers]
    names = [f"{layer.split('.transformer_blocks')[0]} {v.shape[1]}x{v.shape[2]}" for layer, v in layers.items()]
    names = ["x_0 predicted", "all layers", *names]
    body = sheet(rows, names, [step_label(moment.step) for moment in moments], cell_of(moments[0].image))
    return join([legend(colours, body.width), body])


def frame(moment: Moment, colours: dict[str, str], title: str) -> Image.Image:
    """One step: x_0, who owns which patch, and each word's attention; all words of all stages have their places."""
    everyone = owners(moment, list(moment.seen.votes), colours)
    large = [fit(image, 2 * cell_of(moment.image)) for image in (to_image(moment.image), everyone)]
    empty = Image.new("RGB", fit(everyone, cell_of(moment.image)).size, "white")
    small = [tile(overlay(moment.image, moment, word) or empty, word, colour) for word, colour in colours.items()]
    rows = [[tile(large[0], "x_0 predicted", "white"), tile(large[1], "owners", "white")]]
    rows += [small[i : i + 4] for i in range(0, len(small), 4)]
    body = join([join(row, across=True) for row in rows])
    return join([text_lines(f"{title}\n{step_label(moment.step)}", body.width), body])


def cell_of(picture: Tensor) -> int:
    """Pixels that the longer side of a picture [3, H, W] gets on a sheet: a multiple of its own, or at most 256."""
    longest = max(picture.shape[1:])
    return min(longest * -(-128 // longest), 256)


def step_label(step: Step) -> str:
    return f"step {step.i + 1} of {step.n}, t={step.now.t}"


def overlay(picture: Tensor, moment: Moment, word: str) -> Image.Image | None:
    """A word's attention as heat over a picture [3, H, W] in grey, from the weakest to the strongest patch."""
    words = labels(moment.seen.words)
    if word not in words:
        return None
    share = average(moment.seen.maps.values())[words.index(word)]
    low, high = share.min().item(), share.max().item()
    heat = enlarge((share - low) / max(high - low, 1e-12), picture)
    ramp = F.interpolate(HEAT.T[None], 256, mode="linear", align_corners=True)[0]  # [3, 256]
    image = fit(tinted(picture, ramp[:, (255 * heat).long()], 0.65), cell_of(picture))
    at = (3, image.height - 3)
    pen = ImageDraw.Draw(image)
    pen.text(at, f"{low:.1%} to {high:.1%}", fill="black", font=SMALL, anchor="ls", stroke_width=2, stroke_fill="white")
    return image


def owners(moment: Moment, layers: Sequence[str], colours: dict[str, str]) -> Image.Image:
    """Each patch of x_0, in grey, in the colour of the word that owns it by the votes of these layers."""
    index = owner_map(average([moment.seen.votes[layer] for layer in layers]))
    words = [colours[label] for label in labels(moment.seen.words)]
    table = torch.tensor([ImageColor.getrgb(colour) for colour in (*words, NO_WORD)]) / 255
    colour = torch.stack([enlarge(channel, moment.image) for channel in table[index].unbind(dim=-1)])
    return tinted(moment.image, colour, 0.75)


def tinted(picture: Tensor, colour: Tensor, strength: float) -> Image.Image:
    """A picture [3, H, W] in grey, each pixel mixed with its colour [3, H, W]."""
    return to_image(torch.lerp(picture.mean(dim=0).expand(3, -1, -1), colour, strength))


def enlarge(patches: Tensor, picture: Tensor) -> Tensor:
    """Patches [h, w] as squares of the size of a picture [3, H, W]."""
    return F.interpolate(patches[None, None], picture.shape[1:], mode="nearest")[0, 0]


def tile(image: Image.Image, label: str, colour: str) -> Image.Image:
    """A picture below its label on a strip of a colour."""
    canvas = Image.new("RGB", (image.width, image.height + LINE), "white")
    canvas.paste(strip(label, colour, image.width))
    canvas.paste(image, (0, LINE))
    return canvas


def legend(colours: dict[str, str], width: int) -> Image.Image:
    """The words on strips of their colours, and that of patches that no word owns."""
    strips = [strip(word, colour, STRIP) for word, colour in [*colours.items(), ("no word", NO_WORD)]]
    columns = max(width // (STRIP + GAP), 1)
    return join([join(strips[i : i + columns], across=True) for i in range(0, len(strips), columns)])


def strip(label: str, colour: str, width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, LINE), colour)
    fits = width // 7
    short = label if len(label) <= fits else label[: fits - 1] + "…"
    ink = "white" if sum(ImageColor.getrgb(colour)) < 400 else "black"
    ImageDraw.Draw(canvas).text((3, 1), short, fill=ink, font=FONT)
    return canvas


def titled(image: Image.Image, title: str) -> Image.Image:
    return join([text_lines(title, image.width), image])


def text_lines(text: str, width: int) -> Image.Image:
    """Text on as many lines as it needs."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width // 8)]
    canvas = Image.new("RGB", (width, len(lines) * LINE), "white")
    ImageDraw.Draw(canvas).multiline_text((GAP, 0), "\n".join(lines), fill="black", font=FONT)
    return canvas


def join(images: Sequence[Image.Image], across: bool = False) -> Image.Image:
    """Images below, or beside, each other on white."""
    sizes = [(image.width + GAP, image.height + GAP) for image in images]
    widths, heights = zip(*sizes, strict=True)
    canvas = Image.new("RGB", (sum(widths), max(heights)) if across else (max(widths), sum(heights)), "white")
    for i, image in enumerate(images):
        canvas.paste(image, (sum(widths[:i]), 0) if across else (0, sum(heights[:i])))
    return canvas
