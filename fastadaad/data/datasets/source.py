"""Arguments of the readers of data sets."""

from dataclasses import dataclass
from pathlib import Path

from fastadaad.config import OnError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Place of a data set, and settings of its image files; the fields match DataConfig.

    Attributes:
        root: Folder of the files.
        download: Fetch files that `root` lacks from the network; otherwise nothing is fetched.
        image_size: Side of the resized images in pixels; None: default of the data set.
        center_share: Side of the center crop as a fraction of the shorter side; None: default of the data set.
        on_error: "raise", or "skip" to leave out files that cannot be decoded.
    """

    root: Path
    download: bool = False
    image_size: int | None = None
    center_share: float | None = None
    on_error: OnError = "raise"
