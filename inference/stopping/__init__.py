"""Stopping: signals of a run, an algebra of rules over them, and an engine that asks them.

    rule = (BetaMajority(0.95) & Threshold("draws", at_least=4)) | Budget(tokens=20_000)
    infer(program, engine=Sequential(Forward(4), rule))

See `docs/stopping.md`.
"""

from lmppl.inference.stopping.calibrate import Trial, calibrate, trial
from lmppl.inference.stopping.chain import AnswerWindow, EndSignal, Momentum, convergence
from lmppl.inference.stopping.criteria import BetaMajority, Budget, Secretary, Slope
from lmppl.inference.stopping.rounds import Rounded, Rounds
from lmppl.inference.stopping.rules import And, Consecutive, Or, Patience, Rule, State, Threshold
from lmppl.inference.stopping.sequential import Adaptive, Pooled, Sequential, Stopped
from lmppl.inference.stopping.signals import Readings

__all__ = [
    "Adaptive",
    "And",
    "AnswerWindow",
    "BetaMajority",
    "Budget",
    "Consecutive",
    "EndSignal",
    "Momentum",
    "Or",
    "Patience",
    "Pooled",
    "Readings",
    "Rounded",
    "Rounds",
    "Rule",
    "Secretary",
    "Sequential",
    "Slope",
    "State",
    "Stopped",
    "Threshold",
    "Trial",
    "calibrate",
    "convergence",
    "trial",
]
