"""The teachers that come with the package, and the names of checkpoints in a configuration."""

from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX = "shipped:"


def checkpoint_path(checkpoint: str) -> Path:
    """Returns the file of `checkpoint`: a path, or `shipped:NAME` for a file of the package.

    Raises ValueError if the package has no file NAME.
    """
    if not checkpoint.startswith(PREFIX):
        return Path(checkpoint)
    path = FOLDER / f"{checkpoint.removeprefix(PREFIX)}.safetensors"
    if not path.is_file():
        shipped = ", ".join(PREFIX + path.stem for path in sorted(FOLDER.glob("*.safetensors"))) or "none"
        raise ValueError(f"{checkpoint} is not part of this package: shipped are {shipped}")
    return path
