"""A plain PyTorch loop: `Distiller.step` runs the inner loop, the loss, the backward pass and the optimizer."""

import torch
from digits import EPSILON, evaluation_batches, robust_teacher, training_batches

from fastadaad import Distiller, InnerConfig, ThreatModel, load_model
from fastadaad.evaluation import AttackResult, evaluate


def main(epochs: int = 4, method: str = "adaad", device: str = "cpu") -> tuple[list[float], list[AttackResult]]:
    """Trains and returns the mean loss of each epoch, and the test accuracies: natural, and under PGD-20."""
    torch.manual_seed(0)
    student = load_model("cnn-16-s1", in_channels=1).to(device)
    teacher = robust_teacher().to(device)
    threat_model = ThreatModel(epsilon=EPSILON)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    inner = InnerConfig(threat_model=threat_model, step_size=EPSILON / 3, num_steps=5)
    distiller = Distiller(student, teacher, method=method, inner=inner, optimizer=optimizer)
    losses = []
    for epoch in range(epochs):
        # The losses stay on the device until the end of the epoch, so that no step causes a host sync.
        results = [
            distiller.step(x.to(device), y.to(device), epoch=epoch).loss for x, y in training_batches(seed=epoch)
        ]
        losses.append(torch.stack(results).mean().item())
        print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    batches = [(x.to(device), y.to(device)) for x, y in evaluation_batches()]
    accuracies = evaluate(student, lambda: batches, ["natural", "pgd20"], threat_model=threat_model)
    for result in accuracies:
        print(f"{result.attack}: {100 * result.accuracy:.1f} % of {result.num_images} images")
    return losses, accuracies


if __name__ == "__main__":
    main()
