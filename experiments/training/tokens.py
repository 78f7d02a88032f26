"""The token table of a text encoder, while it learns the words of one world."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.emoji.world import World
from ldm.text import Tokenizer


def tokens_of(world: World, tokenizer: Tokenizer) -> Tensor:
    """Returns the ids [N], in ascending order, of all tokens in the world's captions, with BOS, EOS and padding."""
    words = [*world.concepts, *world.styles, *world.colours, *world.backgrounds, *world.sizes_one, *world.sizes_more]
    templates = [*world.grounds, *(template for group in world.templates.values() for template in group)]
    between = [re.sub(r"\{\w+\}", " ", template) for template in templates]
    return tokenizer(["a", "an", *words, *between]).ids.unique()


class WorldTable(nn.Module):
    """An embedding of some tokens alone, in the place of a table [vocab, width] of all.

    Only rows of tokens that captions contain ever get a gradient, and the optimizer moves no others. So to train these
    rows is to train the whole table, without the work that 49,408 rows make in every step.
    """

    table: Tensor
    tokens: Tensor
    row_of: Tensor

    def __init__(self, table: Tensor, tokens: Tensor):
        super().__init__()
        self.weight = nn.Parameter(table[tokens].clone())
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("tokens", tokens, persistent=False)
        row_of = torch.full((len(table),), -1).index_put((tokens,), torch.arange(len(tokens)))
        self.register_buffer("row_of", row_of, persistent=False)  # -1: no embedding, which F.embedding refuses

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(self.row_of[ids], self.weight)

    def whole(self) -> Tensor:
        """Returns the table of all tokens, with these rows as they are by now."""
        return self.table.index_put((self.tokens,), self.weight.detach())
