"""Images as files, as labelled sheets, and as what a page holds within itself."""

import base64
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from experiments.files import atomically

LOSSLESS = 96  # pixels a side, up to which a page keeps every one of them
TEXT_KEY = "ldm-guidance"  # the PNG text chunk that says what determines a picture


def to_image(image: Tensor) -> Image.Image:
    """A PIL image of [3, H, W] in [0, 1]."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def save_png(image: Image.Image, path: Path, text: dict[str, Any] | None = None) -> None:
    """Writes a PNG atomically; `text` goes into the file as JSON."""
    info = PngInfo()
    if text is not None:
        info.add_text(TEXT_KEY, json.dumps(text, sort_keys=True))
    with atomically(path) as part:
        image.save(part, format="PNG", pnginfo=info)


def save_gif(frames: Sequence[Image.Image], path: Path, durations: Sequence[int]) -> None:
    """Writes an animation that repeats, atomically; durations of the frames in milliseconds."""
    with atomically(path) as part:
        frames[0].save(part, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def webp_uri(image: Image.Image, quality: int) -> str:
    """Returns a picture as WebP in a data URI."""
    file = io.BytesIO()
    lossless = max(image.size) <= LOSSLESS
    image.save(file, format="WEBP", lossless=lossless, quality=quality, method=2)  # half the time, a few % more bytes
    return data_uri("image/webp", file.getvalue())


def svg_uri(svg: bytes) -> str:
    return data_uri("image/svg+xml", svg)


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
    cell: int = 128,
    title: str = "",
) -> Image.Image:
    """Images in rows with a label at the left of each and one above each column; None leaves a cell empty.

    Pictures are scaled to `cell` pixels on their longer side, the small ones by whole factors without smoothing.
    """
    font = ImageFont.load_default(13)
    gap, left = 4, 190 if any(row_labels) else 4
    line = 16
    column_lines = [textwrap.wrap(label, max(cell // 7, 8)) for label in column_labels]
    above = line * max((len(lines) for lines in column_lines), default=0) + gap
    top = above + (26 if title else 0)
    width = max(len(row) for row in rows)
    canvas = Image.new("RGB", (left + width * (cell + gap), top + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((gap, gap), title, fill="black", font=ImageFont.load_default(16))
    for x, lines in enumerate(column_lines):
        draw.multiline_text((left + x * (cell + gap), top - above), "\n".join(lines), fill="black", font=font)
    for y, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        lines = textwrap.wrap(label, 26)[: cell // line]
        draw.multiline_text((gap, top + y * (cell + gap)), "\n".join(lines), fill="black", font=font)
        for x, image in enumerate(row):
            if image is not None:
                canvas.paste(fit(image, cell), (left + x * (cell + gap), top + y * (cell + gap)))
    return canvas


def captioned(images: Sequence[Image.Image], captions: Sequence[str], columns: int, cell: int = 128) -> Image.Image:
    """Images in rows of `columns`, each with its number and caption below it."""
    font, line, lines, gap = ImageFont.load_default(12), 14, 5, 6
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + lines * line + gap) + gap), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (cell + lines * line + gap)
        canvas.paste(fit(image, cell), (x, y))
        words = textwrap.wrap(f"{i + 1}. {caption}", 2 * cell // 13, max_lines=lines, placeholder=" …")
        pen.multiline_text((x, y + cell), "\n".join(words), fill="black", font=font, spacing=1)
    return canvas


def fit(image: Image.Image, cell: int) -> Image.Image:
    longest = max(image.size)
    if longest <= cell:
        factor = cell // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize((image.width * cell // longest, image.height * cell // longest), Image.Resampling.LANCZOS)


def latent_image(latent: Tensor) -> Image.Image:
    """A latent [4, h, w] as colours: its first three channels, each stretched to its own range."""
    x = latent[:3].float().cpu().numpy()
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    return Image.fromarray((255 * (x - low) / (high - low)).astype(np.uint8).transpose(1, 2, 0))
