from .accuracy import AttackResult as AttackResult
from .accuracy import evaluate as evaluate
from .accuracy import masking_warning as masking_warning
from .accuracy import merge as merge
from .accuracy import num_stages as num_stages
from .attacks import AttackSpec as AttackSpec
from .attacks import check_attacks as check_attacks
from .attacks import parse_attack as parse_attack

__all__ = [
    "AttackResult",
    "AttackSpec",
    "check_attacks",
    "evaluate",
    "masking_warning",
    "merge",
    "num_stages",
    "parse_attack",
]
