"""Names of the evaluation attacks. Imports no torch, so that a configuration is checked without it."""

import re

# AutoAttack's standard version, in its order.
AUTOATTACK_STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
# AutoAttack's version for networks that use chance; its stages have no name of their own.
RANDOM_AUTOATTACK = "autoattack-rand"
FIXED_NAMES = ("natural", "fgsm", "cw-l2", "autoattack", RANDOM_AUTOATTACK, *AUTOATTACK_STAGES)
# Attacks with a number of steps in their name, and the number if the name has none. pgd requires one.
DEFAULT_STEPS = {"pgd": None, "pgd-targeted": None, "cw-linf": 20, "cw": 1000}
STEPS_PATTERN = re.compile(r"(pgd|cw-linf|cw)([1-9][0-9]{0,4})?(-targeted)?")
CHOICES = (
    "natural, fgsm, pgdN, pgdN-targeted and cw-linfN with N steps such as pgd20, cw or cwN, cw-l2, autoattack, "
    f"{RANDOM_AUTOATTACK}, or one of its stages {', '.join(AUTOATTACK_STAGES)}"
)


def split_attack_name(name: str) -> tuple[str, int | None]:
    """Splits the name of an attack into its family and its number of steps.

    Args:
        name: One of FIXED_NAMES, or pgd, cw-linf or cw with a number of at most five digits; pgd also with -targeted.

    Returns:
        The family and the number of steps, which is None for a name of FIXED_NAMES: pgd20 gives ("pgd", 20),
        pgd20-targeted gives ("pgd-targeted", 20), cw gives ("cw", 1000), fgsm gives ("fgsm", None).

    Raises:
        ValueError: The name is unknown.
    """
    if name in FIXED_NAMES:
        return name, None
    match = STEPS_PATTERN.fullmatch(name) if isinstance(name, str) else None
    family = match[1] + (match[3] or "") if match else ""
    num_steps = match and (match[2] or DEFAULT_STEPS.get(family))
    if family not in DEFAULT_STEPS or num_steps is None:
        raise ValueError(f"unknown attack {name!r}: choose {CHOICES}")
    return family, int(num_steps)


def check_attack_name(name: str) -> None:
    """Raises ValueError if no attack has this name."""
    split_attack_name(name)
