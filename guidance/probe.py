from dataclasses import dataclass, replace

from guidance.branch import Branch, Guidance, Wrapper
from ldm.attention import Edit
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class Probe(Wrapper):
    """Adds one more edit, such as `edits.record`, to a branch of another guidance, in the steps that have it."""

    inner: Guidance
    edit: Edit
    branch: str = "cond"

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {
            name: replace(branch, edits=(*branch.edits, self.edit)) if name == self.branch else branch
            for name, branch in super().branches(conditions, step).items()
        }
