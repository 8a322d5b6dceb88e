"""Data sets by name."""

import pytest
from errors import error_of

from fastadaad.data import DATASETS
from fastadaad.data.datasets import FILE_DATASETS


def test_the_error_for_an_unknown_name_lists_the_known_names(tmp_path):
    assert error_of("mnist", tmp_path) == f"data set 'mnist' is unknown: use one of {', '.join(DATASETS)}"


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in FILE_DATASETS])
@pytest.mark.parametrize("option", [{"image_size": 64}, {"center_share": 0.875}])
def test_options_of_image_files_are_refused_for_arrays(tmp_path, name, option):
    expected = f"the images of {name} have one size: leave out data.image_size and data.center_share"
    assert error_of(name, tmp_path, **option) == expected
