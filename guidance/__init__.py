from guidance.apg import AdaptiveProjected
from guidance.attend_and_excite import AttendAndExcite
from guidance.autoguidance import Autoguidance
from guidance.branch import Branch, Guidance, Unfit, Wrapper, guided
from guidance.cads import ConditionAnnealed
from guidance.cdg import DegradedCondition
from guidance.cfg import ClassifierFree
from guidance.cfg_pp import CFGPlusPlus
from guidance.cfg_zero import OptimizedScale
from guidance.classifier import ClassifierGuided
from guidance.clip import ClipGuided
from guidance.composable import Composable, Part, PerpNeg
from guidance.dynamic_threshold import DynamicThreshold
from guidance.everywhere import AttentionTemperature, FreeU, SparseCross
from guidance.fdg import FrequencyDecoupled
from guidance.icg import IndependentCondition
from guidance.interval import Interval
from guidance.mambo import MagnitudeAware
from guidance.mix import Linear, Mix
from guidance.momentum import Momentum
from guidance.multistage import Multistage, Stage
from guidance.perturbed import PerturbedAttention, SmoothedEnergy
from guidance.probe import Probe
from guidance.rescale import Rescale
from guidance.sag import SelfAttentionGuidance
from guidance.samg import SpatiallyAdaptive
from guidance.scfg import SemanticAware
from guidance.scheduled import Beta, Cosine, Ramp, Scheduled, Table
from guidance.segmentation_free import SegmentationFree
from guidance.smc import SlidingMode
from guidance.tcfg import Tangential

__all__ = [
    "AdaptiveProjected",
    "AttendAndExcite",
    "AttentionTemperature",
    "Autoguidance",
    "Beta",
    "Branch",
    "ClassifierFree",
    "ClassifierGuided",
    "ClipGuided",
    "Composable",
    "ConditionAnnealed",
    "Cosine",
    "DegradedCondition",
    "DynamicThreshold",
    "FreeU",
    "FrequencyDecoupled",
    "Guidance",
    "IndependentCondition",
    "Interval",
    "Linear",
    "MagnitudeAware",
    "CFGPlusPlus",
    "Mix",
    "Momentum",
    "Multistage",
    "OptimizedScale",
    "Part",
    "PerpNeg",
    "PerturbedAttention",
    "Probe",
    "Ramp",
    "Rescale",
    "Scheduled",
    "SegmentationFree",
    "SelfAttentionGuidance",
    "SemanticAware",
    "SlidingMode",
    "SmoothedEnergy",
    "SparseCross",
    "SpatiallyAdaptive",
    "Stage",
    "Table",
    "Tangential",
    "Unfit",
    "Wrapper",
    "guided",
]
