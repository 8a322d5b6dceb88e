"""Natural and robust accuracy, their table and their curves."""

from fastadaad.evaluation.accuracy import AttackResult, evaluate, masking_warning, merge, num_parts
from fastadaad.evaluation.attacks import AttackSpec, check_attacks, parse_attack

__all__ = [
    "AttackResult",
    "AttackSpec",
    "check_attacks",
    "evaluate",
    "masking_warning",
    "merge",
    "num_parts",
    "parse_attack",
]
