"""A LightningModule with the inner loop and the loss of any method; Lightning does everything else.

Optimization is automatic, so Lightning's precision, strategies and gradient accumulation apply. `validation_step`
measures robust accuracy: the attack computes its gradients in Lightning's inference mode too, whereas attacks of other
libraries need `Trainer(inference_mode=False)`. The teacher is no submodule, which Lightning would save and warn about.
"""

import pytorch_lightning as pl
import torch
from digits import EPSILON, evaluation_batches, robust_teacher, training_batches
from torch import Tensor, nn

from fastadaad import InnerConfig, InnerMaximizer, ThreatModel, load_model, methods


class RobustDistillation(pl.LightningModule):
    """Trains `student` with `method`; logs `loss`, `natural_accuracy` and `robust_accuracy`."""

    def __init__(self, student: nn.Module, teacher: nn.Module, method: str, inner: InnerConfig):
        super().__init__()
        self.student = student
        self.method = methods.get(method)
        teacher.eval().requires_grad_(False)
        self.maximizer = InnerMaximizer(student, teacher, method=self.method, inner=inner)
        self.attack = InnerMaximizer(student, method="pgd-at", inner=inner)

    def on_fit_start(self) -> None:
        if self.maximizer.teacher is not None:
            self.maximizer.teacher.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_number: int) -> Tensor:
        x_natural, labels = batch
        x_adv = self.maximizer(x_natural, labels)
        teacher = self.maximizer.teacher
        loss = self.method.outer_loss(self.student, teacher, x_natural, x_adv, labels, self.current_epoch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_number: int) -> None:
        x_natural, labels = batch
        x_adv = self.attack(x_natural, labels, generator=torch.Generator(self.device).manual_seed(batch_number))
        for name, x in (("natural_accuracy", x_natural), ("robust_accuracy", x_adv)):
            self.log(name, (self.student(x).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def main(epochs: int = 3, method: str = "adaad", accelerator: str = "cpu", **options) -> tuple[pl.Trainer, nn.Module]:
    """Trains and returns the trainer and the student.

    Args:
        epochs: Number of epochs.
        method: Name of the method.
        accelerator: Accelerator of the Trainer.
        options: Further arguments of the Trainer.

    Returns:
        The Trainer, whose callback_metrics has the last logged values, and the trained student.
    """
    torch.manual_seed(0)
    student, teacher = load_model("cnn-16-s1", in_channels=1), robust_teacher()
    inner = InnerConfig(threat_model=ThreatModel(epsilon=EPSILON), step_size=EPSILON / 3, num_steps=5)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(RobustDistillation(student, teacher, method, inner), training_batches(), evaluation_batches())
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
    return trainer, student


if __name__ == "__main__":
    main()
