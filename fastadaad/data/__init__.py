"""Data sets as uint8 tensors, and batches of them as a pure function of (seed, epoch, position)."""

from fastadaad.data.dataset import DataError, Dataset
from fastadaad.data.datasets import DATASETS, load_dataset
from fastadaad.data.resident import ResidentPipeline
from fastadaad.data.splits import split_validation, subset

__all__ = ["DATASETS", "DataError", "Dataset", "ResidentPipeline", "load_dataset", "split_validation", "subset"]
