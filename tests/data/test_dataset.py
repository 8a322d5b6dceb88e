"""The label check that all readers of data sets share."""

import pytest
import torch

from fastadaad.data import DataError
from fastadaad.data.dataset import check_labels


@pytest.mark.parametrize(("labels", "outside"), [([0, 9, 10], 10), ([3, -1, 12], -1)])
def test_labels_out_of_range_are_named(tmp_path, labels, outside):
    with pytest.raises(DataError) as caught:
        check_labels(tmp_path, torch.tensor(labels), 10, "fix them")
    assert str(caught.value) == f"{tmp_path} holds the label {outside}, outside 0..9: fix them"
    check_labels(tmp_path, torch.arange(10), 10, "")
    check_labels(tmp_path, torch.tensor([], dtype=torch.int64), 10, "")
