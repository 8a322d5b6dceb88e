"""Evaluates a student trained with fastadaad by foolbox's PGD and by ours."""

import foolbox
import torch
from digits import EPSILON, evaluation_batches, robust_teacher, training_batches
from torch import nn

from fastadaad import Distiller, InnerConfig, ThreatModel, load_model
from fastadaad.evaluation import evaluate

THREAT_MODEL = ThreatModel(epsilon=EPSILON)


def train_student(epochs: int, device: str) -> nn.Module:
    student = load_model("cnn-16-s1", in_channels=1).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    inner = InnerConfig(threat_model=THREAT_MODEL, step_size=EPSILON / 3, num_steps=5)
    distiller = Distiller(student, robust_teacher().to(device), inner=inner, optimizer=optimizer)
    for epoch in range(epochs):
        for x_natural, _ in training_batches(seed=epoch):
            distiller.step(x_natural.to(device))
    return student


def main(epochs: int = 2, device: str = "cpu") -> dict[str, float]:
    """Returns the accuracy on the test images: natural, and under PGD-20 by foolbox and by fastadaad."""
    torch.manual_seed(0)
    student = train_student(epochs, device).eval()  # foolbox runs the network in its current mode
    ((x_natural, labels),) = evaluation_batches()
    x_natural, labels = x_natural.to(device), labels.to(device)
    network = foolbox.PyTorchModel(student, bounds=(0, 1), device=device)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=20)  # with a random start, like ours
    _, _, fooled = attack(network, x_natural, labels, epsilons=EPSILON)
    natural, ours = evaluate(student, lambda: [(x_natural, labels)], ["natural", "pgd20"], threat_model=THREAT_MODEL)
    accuracies = {
        "natural": natural.accuracy,
        "foolbox": 1 - fooled.float().mean().item(),
        "fastadaad": ours.accuracy,
    }
    print({name: round(accuracy, 3) for name, accuracy in accuracies.items()})
    return accuracies


if __name__ == "__main__":
    main()
