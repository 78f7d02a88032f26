"""Conditions that are no text: a class by its name, as latent diffusion and DiT tell it to their networks."""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from ldm.condition import Condition, Span, Unfit
from ldm.config import ClassesConfig
from ldm.layers import Embedding


class ClassTable(nn.Module):
    """A learnt vector for each class and, in the last row, for the null class that classifier-free guidance needs.

    forward(ids [B]) -> the Condition of these rows: one token [B, 1, width] for cross-attention (ClassEmbedder of
    Rombach et al. 2022), its name for a word, or a vector [B, width] added to the time embedding (Peebles & Xie 2023)
    """

    def __init__(self, config: ClassesConfig):
        super().__init__()
        self.names = config.names
        self.null = len(config.names)
        self.as_vector = config.as_vector
        self.embedding = Embedding(len(config.names) + 1, config.width)

    def forward(self, ids: Tensor) -> Condition:
        rows = self.embedding(ids)
        if self.as_vector:
            return Condition(vector=rows, spans=((),) * len(ids))  # no token, and so no word
        words = [name.lower() for name in self.names]
        spans = tuple((Span(words[row], 0, 1),) if row != self.null else () for row in ids.tolist())
        return Condition(rows[:, None], spans=spans)

    def ids(self, names: Sequence[str]) -> Tensor:
        """Returns the rows [B] of classes by their names; "" is the null class. Raises Unfit for an unknown name."""
        rows = {"": self.null} | {name: row for row, name in enumerate(self.names)}
        for name in names:
            if name not in rows:
                raise Unfit(f"there is no class {name!r}: {nearest(name, self.names)}")
        return torch.tensor([rows[name] for name in names])


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns what to ask for in the place of an unknown name, in words."""
    found = get_close_matches(name, names, n=3, cutoff=0.5)
    if found:
        return f"near it are {', '.join(found)}"
    return f"there are {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
