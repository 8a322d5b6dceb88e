"""Error message of load_dataset, for the tests of the readers."""

from pathlib import Path

import pytest

from fastadaad.data import DataError, load_dataset


def error_of(name: str, root: Path, **options) -> str:
    """Returns the message of the DataError, which is one line."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
