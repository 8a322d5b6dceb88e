"""Versions of installed packages."""

from importlib import metadata


def version(package: str) -> str:
    """Version of an installed package, or `missing`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
