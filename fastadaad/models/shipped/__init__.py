"""The teachers that come with the package, and how checkpoints are named in a configuration."""

from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX = "shipped:"


def checkpoint_path(checkpoint: str) -> Path:
    """The file that `checkpoint` names: `shipped:NAME`, one of the package's own, or a path.

    Raises ValueError for a name that is not shipped.
    """
    if not checkpoint.startswith(PREFIX):
        return Path(checkpoint)
    path = FOLDER / f"{checkpoint.removeprefix(PREFIX)}.safetensors"
    if not path.is_file():
        shipped = ", ".join(PREFIX + path.stem for path in sorted(FOLDER.glob("*.safetensors"))) or "none"
        raise ValueError(f"{checkpoint} is not part of this package: shipped are {shipped}")
    return path
