"""From prompts to what the U-Net is told: the tokenizer and the CLIP text encoder (Radford et al. 2021).

Letters of shapes: B prompts, L tokens (77), D width.
"""

import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm import cpu
from ldm.attention import split
from ldm.condition import Span
from ldm.config import TextEncoderConfig
from ldm.layers import Embedding, Linear


@lru_cache(maxsize=1)
def open_clip_tokenizer() -> ModuleType:
    """open_clip's tokenizer module, loaded by its path: importing the whole package takes seconds, this a tenth."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("ldm._open_clip_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Tokens:
    """ids [B, L]; the words of each prompt that fit, with their token spans; and what was cut off ("" if nothing)."""

    ids: Tensor
    spans: tuple[tuple[Span, ...], ...]
    cut: tuple[str, ...]


class Tokenizer:
    """open_clip's byte-pair encoding, with the padding, truncation and word spans that are ours."""

    def __init__(self, pad_id: int, context: int = 77):
        self.bpe = open_clip_tokenizer()._tokenizer
        self.pad_id = pad_id
        self.context = context

    def __call__(self, prompts: list[str]) -> Tokens:
        ids, spans, cut = zip(*(self.one(prompt) for prompt in prompts), strict=True)
        return Tokens(torch.tensor(ids), spans, cut)

    def one(self, prompt: str) -> tuple[list[int], tuple[Span, ...], str]:
        """The padded ids of one prompt, the spans of its words, and the text that did not fit."""
        bos, eos, room = self.bpe.sot_token_id, self.bpe.eot_token_id, self.context - 2
        tokens = self.bpe.encode(prompt)
        words = []
        start, piece = 0, b""
        for i, token in enumerate(tokens):
            part = self.bpe.decoder[token]
            piece += bytes(self.bpe.byte_decoder[c] for c in part.removesuffix("</w>"))
            if part.endswith("</w>") or token >= bos:
                words.append(Span(piece.decode("utf-8", errors="replace"), start + 1, i + 2))  # token 0 is BOS
                start, piece = i + 1, b""
        kept = [bos, *tokens[:room], eos]
        kept += [self.pad_id] * (self.context - len(kept))
        fits = tuple(word for word in words if word.stop <= room + 1)
        return kept, fits, self.bpe.decode(tokens[room:]).strip()


class EncoderLayer(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.heads = config.heads
        self.quick = config.activation == "quick_gelu"
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        q, k, v = (split(project(h), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        h = cpu.attention(q, k, v, is_causal=True)  # padding is not masked
        x = x + self.out_proj(rearrange(h, "B H L c -> B L (H c)"))
        h = self.fc1(self.layer_norm2(x))
        h = h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h)
        return x + self.fc2(h)


END_ID = 49407  # of the token that ends a text, in CLIP's vocabulary


def ends(ids: Tensor) -> Tensor:
    """The positions [B] of the first end tokens."""
    return (ids == END_ID).int().argmax(dim=1)


class TextEncoder(nn.Module):
    """CLIP's causal text transformer: ids [B, L] -> tokens [B, L, D].

    The tokens leave it after the last layer and the final norm or, as in SDXL, before both (`penultimate`).
    """

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        assert config.activation in ("quick_gelu", "gelu"), config.activation
        self.token_embedding = Embedding(config.vocab, config.width)
        self.position_embedding = Embedding(config.context, config.width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.penultimate = config.penultimate
        self.text_projection = Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens_and_pooled(ids)[0]

    def tokens_and_pooled(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens, and the pooled text [B, projection]: the last layer's at the end token, normed and projected."""
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for layer in self.layers[:-1]:
            x = layer(x)
        if self.penultimate and self.text_projection is None:
            return x, None
        last = self.final_layer_norm(self.layers[-1](x))
        at_end = last[torch.arange(len(ids), device=ids.device), ends(ids)]
        return x if self.penultimate else last, self.text_projection(at_end) if self.text_projection else None


class TextEncoderPair(nn.Module):
    """SDXL's two encoders as one: the tokens of both side by side, and the pooled text of the second."""

    def __init__(self, first: TextEncoderConfig, second: TextEncoderConfig):
        super().__init__()
        self.first, self.second = TextEncoder(first), TextEncoder(second)
        self.pad_id = second.pad_id

    def tokens_and_pooled(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of ids [B, L] that are padded as the first wants it: what follows the end token is the second's padding."""
        after = torch.arange(ids.shape[1], device=ids.device) > ends(ids)[:, None]
        tokens, pooled = self.second.tokens_and_pooled(ids.masked_fill(after, self.pad_id))
        return torch.cat([self.first(ids), tokens], dim=-1), pooled
