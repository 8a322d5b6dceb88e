"""What a reader of a data set is told."""

from dataclasses import dataclass
from pathlib import Path

from fastadaad.config import OnError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set is read from, and how its image files are; the fields are those of DataConfig."""

    root: Path
    download: bool = False
    """Fetch from the network what `root` lacks; else nothing is fetched."""
    image_size: int | None = None
    center_share: float | None = None
    on_error: OnError = "raise"
