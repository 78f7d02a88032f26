from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, check_number, step_count
from guidance.cfg import ClassifierFree
from guidance.edits import only_at, scale_strongest, scale_strongest_score, with_zero_token, without_zero_token
from guidance.mix import Linear, Mix, mixed
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class SegmentationFree:
    """Segmentation-free guidance (Azarian, Das, Hou, Porikli, arXiv 2407.04800, eq. 8-11 and algorithm 1).

    The first t_s steps are classifier-free; then the negative pass sees the positive prompt, with each patch's own
    concept, its strongest token in the cross-attention, pushed out: eps = eps_c + w_bar (eps_c - eps_n); x_0 likewise.

    scale        g = w + 1 of the classifier-free steps
    cfg_steps    t_s: a count (int) or a fraction of all steps (float), from the start of sampling
    sf_strength  w_bar, smaller than w; 0 leaves the conditional alone
    sf_scale     a: the strongest weight A_pk* becomes -a A_pk*; the paper prefers about 10
    argmax       "head": each attention head names its own strongest token; "mean": their average does
    candidates   "all_but_bos", the paper's words; "words" also leaves out EOS and padding
    apply        "weights", the paper's: A_pk* after the softmax; "scores": before it, of all tokens but BOS, to show
                 what that does (it renormalises, and a negative score grows). A published comparison has it so, with
                 argmax="mean" (and a softmax over the patches' own tokens as well, in its joint attention)
    layers       dotted names, as they begin, of the blocks whose cross-attention pushes out; all, as in the paper
    mix          the rule that applies the difference, in both kinds of steps; linear is the paper's
    A negative prompt stands for the empty one in the classifier-free steps and takes no part in the others.
    """

    scale: float = 7.5
    cfg_steps: int | float = 0.5
    sf_strength: float = 2.0
    sf_scale: float = 10.0
    argmax: str = "head"
    candidates: str = "all_but_bos"
    apply: str = "weights"
    layers: Sequence[str] = ("",)
    mix: Mix = Linear()

    def __post_init__(self) -> None:
        for name in ("scale", "sf_strength", "sf_scale"):
            check_number(name, getattr(self, name))
        step_count("cfg_steps", self.cfg_steps, 0)
        if self.argmax not in ("head", "mean"):
            raise ValueError(f"argmax='{self.argmax}': must be head or mean")
        if self.candidates not in ("all_but_bos", "words"):
            raise ValueError(f"candidates='{self.candidates}': must be all_but_bos or words")
        if self.apply not in ("weights", "scores"):
            raise ValueError(f"apply='{self.apply}': must be weights or scores")
        if self.apply == "scores" and (self.candidates == "words" or tuple(self.layers) != ("",)):
            raise ValueError("apply='scores': goes with candidates=all_but_bos in all layers alone")

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        if step.i < step_count("cfg_steps", self.cfg_steps, step.n):
            return ClassifierFree(self.scale).branches(conditions, step)
        if self.apply == "scores":
            longer, push_out = with_zero_token(conditions.cond), scale_strongest_score(-self.sf_scale, self.argmax)
            return {"cond": Branch(longer, (without_zero_token(),)), "rest": Branch(longer, (push_out,))}
        words = conditions.cond.spans if self.candidates == "words" else None
        push_out = only_at(self.layers, scale_strongest(-self.sf_scale, self.argmax, words))
        return {"cond": Branch(conditions.cond), "rest": Branch(conditions.cond, (push_out,))}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        if "rest" not in x_0:
            return ClassifierFree(self.scale, self.mix).combine(x_0, x_t, step)
        return mixed(self.mix, x_0["cond"], x_0["rest"], 1 + self.sf_strength, x_t, step)
