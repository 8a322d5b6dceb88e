"""Natural and robust accuracy, their table and their curves."""

from fastadaad.evaluation.accuracy import AttackResult, evaluate
from fastadaad.evaluation.attacks import AttackSpec, parse_attack

__all__ = ["AttackResult", "AttackSpec", "evaluate", "parse_attack"]
