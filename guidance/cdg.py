from dataclasses import dataclass, replace

import torch

from guidance.branch import Branch
from guidance.edits import candidates, words_of
from guidance.weak import Against
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class DegradedCondition(Against):
    """Condition-degradation guidance, CDG (arXiv 2603.10780, CVPR 2026): away from the prompt without its words.

    p + g (c - p), p under the prompt's embedding whose words' tokens are the empty prompt's, while BOS, EOS and
    padding, which hold the prompt's gist, are kept (the authors' content ratio 1, padding ratio 0, which needs no
    ranking of tokens by attention). Linear, so in any space; two passes.
    scale  7 was tuned for Stable Diffusion 3; the authors did not try Stable Diffusion 1 and 2
    """

    scale: float = 7.0

    def weak(self, conditions: Conditions, step: Step) -> Branch:
        cond, empty = conditions.cond, conditions.encode("")
        tokens = words_of(cond)
        words = candidates(cond.spans, tokens.shape[1])[:, 0, 0, :, None].to(tokens.device)  # [B, L, 1]
        return Branch(replace(cond, tokens=torch.where(words, words_of(empty), tokens)))
