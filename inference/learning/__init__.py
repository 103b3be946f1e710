"""Learning: models trained on what engines infer. See `docs/learning.md`."""

from lmppl.inference.learning.em import Fit, Model, Round, em, refit
from lmppl.inference.learning.evidence_bounds import Bounds, evidence_bounds
from lmppl.inference.learning.export import export_pairs, export_sft
from lmppl.inference.learning.prefixes import token_features
from lmppl.inference.learning.star import star
from lmppl.inference.learning.tabular import TabularLM
from lmppl.inference.learning.texts import Examples, WeightedText, WeightedTrace
from lmppl.inference.learning.twist_potential import TwistPotential
from lmppl.inference.learning.twists import Twist, fit_twist, learn_twist

__all__ = [
    "Bounds",
    "Examples",
    "Fit",
    "Model",
    "Round",
    "TabularLM",
    "Twist",
    "TwistPotential",
    "WeightedText",
    "WeightedTrace",
    "em",
    "evidence_bounds",
    "export_pairs",
    "export_sft",
    "fit_twist",
    "learn_twist",
    "refit",
    "star",
    "token_features",
]
