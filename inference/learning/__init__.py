"""Learning: models trained on what engines infer. See `docs/learning.md`."""

from lmppl.inference.learning.em import Fit, Model, Round, em, refit
from lmppl.inference.learning.export import export_pairs, export_sft
from lmppl.inference.learning.star import star
from lmppl.inference.learning.tabular import TabularLM
from lmppl.inference.learning.texts import Examples, WeightedText, WeightedTrace

__all__ = [
    "Examples",
    "Fit",
    "Model",
    "Round",
    "TabularLM",
    "WeightedText",
    "WeightedTrace",
    "em",
    "export_pairs",
    "export_sft",
    "refit",
    "star",
]
