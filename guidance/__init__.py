from guidance.branch import Branch, Guidance, Wrapper, guided
from guidance.cfg import ClassifierFree
from guidance.interval import Interval
from guidance.mix import Linear, Mix
from guidance.multistage import Multistage, Stage
from guidance.probe import Probe
from guidance.rescale import Rescale
from guidance.segmentation_free import SegmentationFree

__all__ = [
    "Branch",
    "ClassifierFree",
    "Guidance",
    "Interval",
    "Linear",
    "Mix",
    "Multistage",
    "Probe",
    "Rescale",
    "SegmentationFree",
    "Stage",
    "Wrapper",
    "guided",
]
