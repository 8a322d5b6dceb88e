"""Data sets, and engines that make their batches as a pure function of (seed, epoch, batch number)."""

from fastadaad.data.augmentation import Augmentation
from fastadaad.data.dataset import DataError, Dataset, ImageFiles
from fastadaad.data.datasets import DATASETS, load_dataset
from fastadaad.data.engines import make_pipeline
from fastadaad.data.engines.resident import ResidentPipeline
from fastadaad.data.mixing import Mixing
from fastadaad.data.pipeline import Pipeline
from fastadaad.data.sampling import Sampling
from fastadaad.data.splits import evaluation_subset, split_validation, subset

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataError",
    "Dataset",
    "ImageFiles",
    "Mixing",
    "Pipeline",
    "ResidentPipeline",
    "Sampling",
    "evaluation_subset",
    "load_dataset",
    "make_pipeline",
    "split_validation",
    "subset",
]
