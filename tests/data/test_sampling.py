"""Split of an epoch's samples into batches and shards."""

from itertools import chain

import pytest
import torch

from fastadaad.data import Sampling
from fastadaad.data.hashing import epoch_order


def joined(batches) -> list[int]:
    return list(chain.from_iterable(batches))


def batches(num_samples: int, epoch: int = 0, **options) -> list[list[int]]:
    sampling = Sampling(**({"batch_size": 5, "seed": 3} | options))
    sampling.check(num_samples)
    found = [batch.tolist() for batch in sampling.batches(epoch, num_samples)]
    assert len(found) == sampling.num_batches(num_samples)
    return found


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_batches_follow_the_order_of_the_epoch(drop_last, sizes):
    found = batches(23, epoch=4, drop_last=drop_last)
    assert list(map(len, found)) == sizes
    assert joined(found) == epoch_order(3, 4, 23)[: sum(sizes)].tolist()


def test_length_if_the_batch_size_divides_the_set():
    assert len(batches(10, drop_last=True)) == len(batches(10)) == 2


def test_without_shuffling_the_order_is_that_of_the_set():
    assert joined(batches(12, shuffle=False)) == list(range(12))


@pytest.mark.parametrize("num_shards", [2, 3])
@pytest.mark.parametrize("epoch", [0, 1])
def test_shards_partition_the_set(num_shards, epoch):
    shards = [joined(batches(23, epoch, shard=shard, num_shards=num_shards)) for shard in range(num_shards)]
    assert sorted(joined(shards)) == list(range(23))


def test_ranks_with_smaller_batches_see_together_the_batches_of_one_rank():
    whole = batches(50, batch_size=12, drop_last=True)
    parts = [batches(50, batch_size=4, drop_last=True, shard=shard, num_shards=3) for shard in range(3)]
    for batch, of_processes in zip(whole, zip(*parts, strict=True), strict=True):
        assert sorted(batch) == sorted(joined(of_processes))


def test_ranks_have_equal_numbers_of_full_batches_with_drop_last():
    for shard in range(4):
        assert list(map(len, batches(47, drop_last=True, shard=shard, num_shards=4))) == [5, 5]


@pytest.mark.parametrize("num_extra", [100, 13])  # more than an epoch needs, and fewer
def test_extra_samples_make_up_their_fraction_of_each_batch(num_extra):
    options = {"batch_size": 10, "drop_last": True, "num_extra": num_extra, "extra_share": 0.7}
    first, second = (batches(60 + num_extra, epoch, **options) for epoch in (0, 1))
    assert len(first) == 6  # as without extra samples
    assert all(sum(index >= 60 for index in batch) == 7 for batch in first)
    own = [index for batch in first for index in batch if index < 60]
    assert len(set(own)) == len(own) == 18
    extra = [index for batch in first for index in batch if index >= 60]
    assert len(set(extra)) == min(42, num_extra)  # no sample comes twice before all were seen
    assert max(extra) < 60 + num_extra
    assert first != second


def test_two_ranks_split_the_extra_samples_too():
    options = {"drop_last": True, "num_extra": 100, "extra_share": 0.7}
    whole = batches(160, batch_size=10, **options)
    parts = [batches(160, batch_size=5, shard=shard, num_shards=2, **options) for shard in range(2)]
    for batch, of_processes in zip(whole, zip(*parts, strict=True), strict=True):
        assert sorted(batch) == sorted(joined(of_processes))


def test_an_empty_set_has_no_batches():
    assert batches(0) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is not positive: give at least 1"),
        ({"batch_size": 24, "drop_last": True}, "batch_size 24 exceeds the 23 images .*: choose batch_size <= 23"),
        (
            {"batch_size": 12, "drop_last": True, "num_shards": 2},
            "batch_size 12 on each of 2 ranks exceeds the 23 images .*: choose batch_size <= 11",
        ),
        (
            {"batch_size": 20, "drop_last": True, "num_extra": 10, "extra_share": 0.5},
            "batch_size 20 exceeds the 13 images",
        ),
        ({"shard": 2, "num_shards": 2}, r"shard 2 is outside 0\.\.1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        batches(23, **options)


def test_batches_with_extra_samples_are_a_function_of_seed_and_epoch():
    options = {"batch_size": 10, "drop_last": True, "num_extra": 50, "extra_share": 0.5}
    assert batches(80, 2, **options) == batches(80, 2, **options)
    assert batches(80, 2, **options) != batches(80, 2, **options | {"seed": 4})
    assert torch.tensor(batches(80, 2, **options)).shape == (3, 10)
