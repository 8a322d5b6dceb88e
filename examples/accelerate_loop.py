"""Hugging Face Accelerate: `prepare` may wrap the student; the inner loop finds the network inside the wrapper."""

import torch
from accelerate import Accelerator
from digits import EPSILON, robust_teacher, training_batches
from torch import nn

from fastadaad import InnerConfig, InnerMaximizer, ThreatModel, load_model, methods


def main(epochs: int = 2, method: str = "adaad", cpu: bool = True, **options) -> tuple[list[float], nn.Module]:
    """Trains and returns the mean loss of each epoch and the student; `options` are passed to Accelerator."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=cpu, **options)
    student = load_model("cnn-16-s1", in_channels=1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    student, optimizer, batches = accelerator.prepare(student, optimizer, training_batches())
    teacher = robust_teacher().to(accelerator.device).eval().requires_grad_(False)
    row = methods.get(method)
    inner = InnerConfig(threat_model=ThreatModel(epsilon=EPSILON), step_size=EPSILON / 3, num_steps=5)
    maximizer = InnerMaximizer(student, teacher, method=row, inner=inner)
    losses = []
    for epoch in range(epochs):
        step_losses = []
        student.train()
        for x_natural, labels in batches:
            with accelerator.accumulate(student):
                x_adv = maximizer(x_natural, labels)
                loss = row.outer_loss(student, teacher, x_natural, x_adv, labels, epoch)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            step_losses.append(loss.detach())
        losses.append(accelerator.reduce(torch.stack(step_losses).mean(), "mean").item())
        accelerator.print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    return losses, accelerator.unwrap_model(student)


if __name__ == "__main__":
    main()
