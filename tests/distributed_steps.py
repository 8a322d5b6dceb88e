"""One of several ranks that train a student together by Distiller.step, each on its shard of the batches."""

import os
from pathlib import Path

import torch
from networks import images_and_labels, student_and_teacher
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastadaad import Distiller, InnerConfig, ThreatModel

INNER = InnerConfig(threat_model=ThreatModel(epsilon=16 / 255), step_size=4 / 255, num_steps=4, start="natural")
METHODS = ("adaad", "adaiad", "rslad")
NUM_STEPS = 3
BATCH_SIZE = 16


def fixed_batch_norm() -> tuple[nn.Module, nn.Module]:
    """Networks whose batch-norm uses running statistics, so that images do not affect each other."""
    networks = student_and_teacher()
    for network in networks:
        network[1].eval()
        network[4].eval()
    return networks


def train(student: nn.Module, teacher: nn.Module, method: str, shard: slice) -> list[torch.Tensor]:
    """Trains on a shard of the batches and returns the loss of each step."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    distiller = Distiller(student, teacher, method=method, inner=INNER, optimizer=optimizer)
    batches = [images_and_labels(BATCH_SIZE, seed) for seed in range(NUM_STEPS)]
    return [distiller.step(x_natural[shard], labels[shard], epoch=60).loss for x_natural, labels in batches]


def train_together(rank: int, num_ranks: int, folder: Path) -> None:
    """Trains on one rank, and writes the loss of each step and the student of each method to a file."""
    os.environ["FASTADAAD_CACHE"] = str(folder)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    size, results = BATCH_SIZE // num_ranks, {}
    for method in METHODS:
        student, teacher = fixed_batch_norm()
        losses = train(DistributedDataParallel(student), teacher, method, slice(rank * size, (rank + 1) * size))
        results[method] = torch.stack(losses), student.state_dict()
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
