from dataclasses import dataclass, replace

import torch

from guidance.branch import Branch
from guidance.edits import text_tokens
from guidance.weak import Against
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class DegradedCondition(Against):
    """Condition-degradation guidance, CDG (Han et al. 2026, arXiv 2603.10780): away from a prompt less its words.

    p + g (c - p), p under the prompt's embedding in which the tokens of its words and its first EOS are the empty
    prompt's. What follows is kept: padding, which holds the prompt's gist. These are the authors' content ratio 1 and
    padding ratio 0, which need no ranking of tokens by attention; BOS is the same in every prompt. Linear, so in any
    space; two passes. Of boxes all are replaced. Where a prompt is cut within a word, EOS and the rest of it stay.
    scale  7 was tuned for Stable Diffusion 3; of Stable Diffusion 1 and 2 the authors have code, but no results
    """

    scale: float = 7.0

    def weak(self, conditions: Conditions, step: Step) -> Branch:
        cond, empty = conditions.cond, conditions.encode("")
        tokens = text_tokens(cond)
        ends = [(spans[0].start, spans[-1].stop) if spans else (1, 0) for spans in cond.spans]  # where EOS follows
        start, stop = torch.tensor(ends, device=tokens.device)[:, :, None].unbind(1)  # [B, 1]
        position = torch.arange(tokens.shape[1], device=tokens.device)
        content = (start <= position) & (position <= stop)
        return Branch(replace(cond, tokens=torch.where(content[:, :, None], text_tokens(empty), tokens)))
