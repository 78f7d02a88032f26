from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from guidance.branch import Branch, Unfit, Wrapper, check_number, combined
from guidance.classifier import prompt_words
from guidance.mix import shifted
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step

LEAST_SIDE = 0.5  # of a cutout, as a share of the picture's shorter side
THROUGH = ("network", "decoder")


class Embedder(Protocol):
    """A CLIP: unit vectors [B, D] in float32 of square pictures [B, 3, size, size] in [-1, 1], and of texts."""

    @property
    def size(self) -> int:
        """Pixels along a side of the pictures that it looks at."""

    def images(self, pictures: Tensor) -> Tensor: ...

    def texts(self, prompts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class ClipGuided(Wrapper):
    """CLIP guidance (Crowson 2021): towards pictures that CLIP finds like the prompt, beside any guidance inside.

    The loss is 2 arcsin(|a - b| / 2)^2 of the unit vectors a of a picture and b of its prompt, half the squared angle
    between them; g is minus its gradient, through CLIP and the decoder.
    scale    s; 0 is `inner` alone
    cutouts  squares of the picture, of half its side and more, over which the loss is averaged, drawn in each step from
             the image's own stream; 0: the whole picture, resized
    through  "network": g is taken at x_t, of the conditional pass's x_0, through the U-Net, which keeps its graph:
             x_0' = x_0 + s (noise^2 / signal) g. "decoder": at the guided x_0, the network held fixed, which takes less
             time and memory: x_0' = x_0 + s (noise / signal)^2 g, large where there is much noise
    prompt   for every image; None: its own, as its words are tokenized
    Pixels are not clamped, since those beyond black and white would then have no gradient. One picture is decoded at a
    time. Where no signal is left, nothing is added.
    """

    clip: Embedder
    scale: float = 100.0
    cutouts: int = 4
    through: str = "network"
    prompt: str | None = None
    told: dict[str, Conditions] = field(default_factory=dict, init=False, repr=False, compare=False)
    read: dict[tuple[str, ...], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        check_number("cutouts", self.cutouts)
        if self.through not in THROUGH:
            raise ValueError(f"through={self.through}: must be {' or '.join(THROUGH)}")

    def acts(self, step: Step) -> bool:
        return bool(self.scale and step.now.signal)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        if not self.acts(step) or self.through == "decoder":
            return branches
        name = "clip" if branches["cond"].gradient else "cond"  # whose graph another has a use for
        return branches | {name: replace(branches["cond"], gradient=True)}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        self.told["now"] = conditions
        return super().more(conditions, x_0, x_t, step)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        out = combined(self.inner, x_0, x_t, step)
        if not self.acts(step):
            return out
        if self.through == "decoder":
            return shifted(out, self.scale * step.now.sigma**2 * self.gradient(out.x_0, step), step)
        estimate = x_0.get("clip", x_0["cond"])
        (g,) = torch.autograd.grad(estimate, x_t, self.gradient(estimate, step), retain_graph=True)
        return shifted(out, self.scale * step.now.noise**2 / step.now.signal * g, step)

    def gradient(self, x_0: Tensor, step: Step) -> Tensor:
        """Minus the gradient [B, ...] of each image's loss at its x_0, through the decoder and CLIP."""
        texts, squares = self.texts(len(x_0)), self.squares(step)
        found = []
        for row, text, own in zip(x_0.detach().split(1), texts, squares, strict=True):
            with torch.enable_grad():
                x = row.requires_grad_()
                pictures = self.cut(self.told["now"].decode(x).float(), own)
                angle = 2 * ((self.clip.images(pictures) - text).norm(dim=1) / 2).clamp(max=1 - 1e-6).arcsin()
                found += torch.autograd.grad(-(angle.square() / 2).mean(), x)
        return torch.cat(found)

    def texts(self, count: int) -> Tensor:
        """The unit vectors [B, D] of the images' prompts."""
        words = prompt_words(self.told["now"].cond)
        prompts = (self.prompt,) * count if self.prompt else tuple(" ".join(row) for row in words)
        if len(prompts) != count or not all(prompts):
            raise Unfit("CLIP has no prompt to compare pictures with: give prompt='...'")
        if prompts not in self.read:
            self.read[prompts] = self.clip.texts(prompts)
        return self.read[prompts]

    def squares(self, step: Step) -> Tensor:
        """Where to cut: side, top and left of each image's cutouts, as shares in 0 .. 1 of what is free, [B, n, 3]."""
        return torch.special.ndtr(self.told["now"].noise(f"clip {step.i}.{step.stage}", (self.cutouts, 3)))

    def cut(self, picture: Tensor, squares: Tensor) -> Tensor:
        """Cutouts [n, 3, size, size] of a picture [1, 3, H, W], or the whole of it where there are none."""
        height, width = picture.shape[2:]
        pieces = []
        for free, above, left in squares.tolist():
            side = round(min(height, width) * (LEAST_SIDE + (1 - LEAST_SIDE) * free))
            top, left = round(above * (height - side)), round(left * (width - side))
            pieces.append(picture[:, :, top : top + side, left : left + side])
        size = (self.clip.size, self.clip.size)
        return torch.cat([F.interpolate(p, size, mode="bilinear", antialias=True) for p in pieces or [picture]])
