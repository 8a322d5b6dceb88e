"""Pixel units: radii and step sizes as people write them, `8/255` or `0.031`."""

import math
import re

_NUMBER = r"\s*((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"


def parse_pixels(text: str | float) -> float:
    """The number that `text` stands for: a decimal or a fraction of two decimals.

    Raises ValueError when `text` is neither.
    """
    match = re.fullmatch(rf"{_NUMBER}(?:/{_NUMBER})?", str(text))
    if match is not None:
        parts = float(match[1]), float(match[2] or 1)
        if parts[1] > 0 and all(map(math.isfinite, (*parts, parts[0] / parts[1]))):
            return parts[0] / parts[1]
    raise ValueError(f"{text!r} is not a radius in pixel units: write it as 8/255 or 0.031")
