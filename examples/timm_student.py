"""A student of timm, or any other network that maps pixels in [0, 1] to logits.

A network that expects normalised pixels gets the normalisation as its first layer, as `Normalize` here, so that
epsilon stays in pixel units. `load_model("timm/test_efficientnet")` does the same.
"""

import timm
import torch
from digits import EPSILON, evaluation_batches, robust_teacher, training_batches
from torch import nn

from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.evaluation import AttackResult, evaluate
from fastadaad.models import Normalize


def main(epochs: int = 3, device: str = "cpu") -> tuple[list[float], list[AttackResult]]:
    """Trains and returns the mean loss of each epoch, and the test accuracies: natural, and under PGD-20."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=10, in_chans=1)  # 101 k parameters
    student = nn.Sequential(Normalize(num_channels=1, mean=0.305, std=0.376), network).to(device)
    teacher = robust_teacher().to(device)
    threat_model = ThreatModel(epsilon=EPSILON)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    inner = InnerConfig(threat_model=threat_model, step_size=EPSILON / 3, num_steps=5)
    distiller = Distiller(student, teacher, method="adaad", inner=inner, optimizer=optimizer)
    losses = []
    for epoch in range(epochs):
        step_losses = [distiller.step(x_natural.to(device)).loss for x_natural, _ in training_batches(seed=epoch)]
        losses.append(torch.stack(step_losses).mean().item())
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    batches = [(x.to(device), y.to(device)) for x, y in evaluation_batches()]
    accuracies = evaluate(student, lambda: batches, ["natural", "pgd20"], threat_model=threat_model)
    print({result.attack: round(result.accuracy, 3) for result in accuracies})
    return losses, accuracies


if __name__ == "__main__":
    main()
