"""Drawings that turn into one another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.svg.drawing import Drawing, to_svg


def between(latents: Tensor, frames: int) -> Tensor:
    """Returns `frames` latents [frames, d] from the first to the last of latents [N, d], at an even pace.

    They go along great circles (Shoemake 1985), so that they stay as long as latents are; where two are parallel,
    along the line.
    """
    places = torch.linspace(0, len(latents) - 1, frames).tolist()
    return torch.stack([on_the_way(latents, place) for place in places])


def on_the_way(latents: Tensor, place: float) -> Tensor:
    """Returns the latent at a fractional position among latents [N, d]."""
    i = min(int(place), len(latents) - 2)
    a, b, share = latents[i], latents[i + 1], place - i
    angle = torch.acos((a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return torch.lerp(a, b, share)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def animated(drawings: Sequence[Drawing], seconds: float) -> str:
    """Returns the SVG text of an animation that shows drawings one after another and goes back, again and again.

    seconds  from the first drawing to the last
    """
    texts = [to_svg(drawing) for drawing in drawings]
    opening = texts[0][: texts[0].index(">") + 1]
    order = [*range(len(drawings)), *range(len(drawings) - 2, 0, -1)]
    groups = [
        f'<g visibility="hidden">{text[text.index(">") + 1 : text.rindex("</svg>")]}'
        f"{flicker([k for k, shown in enumerate(order) if shown == i], len(order), seconds / len(drawings))}</g>"
        for i, text in enumerate(texts)
    ]
    return f"{opening}\n{chr(10).join(groups)}\n</svg>\n"


def flicker(shown: Sequence[int], count: int, pace: float) -> str:
    """Returns what makes a group visible at some of `count` moments, each `pace` seconds long."""
    values = ["visible" if k in shown else "hidden" for k in range(count)]
    times = ";".join(f"{k / count:.5f}" for k in range(count))
    return (
        f'<animate attributeName="visibility" calcMode="discrete" values="{";".join(values)}" keyTimes="{times}" '
        f'dur="{count * pace:.3f}s" repeatCount="indefinite"/>'
    )
