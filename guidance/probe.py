from dataclasses import dataclass, replace

from torch import Tensor

from guidance.branch import Branch, Guidance, Texts
from guidance.edits import chain
from ldm.attention import AttentionEdit
from samplers.schedule import Step


@dataclass(frozen=True)
class Probe:
    """Hangs one more edit, such as `edits.record`, on a branch of another guidance, in the steps that have it."""

    inner: Guidance
    edit: AttentionEdit
    branch: str = "cond"

    def branches(self, texts: Texts, step: Step) -> dict[str, Branch]:
        branches = self.inner.branches(texts, step)
        return {
            name: replace(branch, edit=chain(branch.edit, self.edit)) if name == self.branch else branch
            for name, branch in branches.items()
        }

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        return self.inner.combine(eps, x_t, step)
