"""The line in which a data set is refused."""

from pathlib import Path

import pytest

from fastadaad.data import DataError, load_dataset


def error_of(name: str, root: Path, **options) -> str:
    """What load_dataset says, in one line."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
