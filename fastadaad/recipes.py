"""Recipes: functions that return the complete RunConfig of a published or shipped run.

A recipe takes the method, since a published set-up may differ between methods. All other settings are changed with
overrides (`fastadaad train RECIPE section.field=value`).
"""

import difflib
from collections.abc import Callable
from dataclasses import replace

from fastadaad import methods
from fastadaad.config import InnerConfig, ThreatModel
from fastadaad.methods.programs import program_of
from fastadaad.run_config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, RunConfig, TeacherConfig

# On these small data sets AdaAD at the radius of the evaluation has natural accuracy to spare. A larger training
# radius, as in the paper's study of the radius, trades it for robustness, and so do running statistics of adversarial
# images alone.
ADAAD_RADIUS = 1.25
ADAAD_OPTIONS = {"clean_statistics": False}

# Columns of the paper's table.
TABLE_ATTACKS = ("natural", "fgsm", "pgd20", "cw", "autoattack")  # autoattack needs the extra `aa`


def _base(method: str) -> str:
    """Returns the method without additions: adaad of adaad+igdm."""
    return method.partition("+")[0]


def _epoch_options(method: str, epochs: int) -> dict[str, int]:
    """Scales the options that count epochs from the papers' 200 epochs to `epochs`."""
    options = {"introspection_begin": epochs * 60 // 200, "igdm_ramp_epochs": epochs}
    return {name: value for name, value in options.items() if name in methods.get(method).reads}


def _adaad_options(method: str) -> dict[str, bool]:
    return ADAAD_OPTIONS if _base(method) == "adaad" else {}


def demo(method: str = "adaad") -> RunConfig:
    """500 digits of 8x8 pixels, a student of 24 k parameters, epsilon 0.15: minutes on a laptop."""
    threat_model, epochs = ThreatModel(epsilon=0.15), 60
    training = ADAAD_RADIUS * threat_model.epsilon if _base(method) == "adaad" else threat_model.epsilon
    return RunConfig(
        recipe="demo",
        method=method,
        method_options=_epoch_options(method, epochs) | _adaad_options(method),
        data=DataConfig(name="digits", num_samples=500, validation_size=200, batch_size=64, padding=1),
        student=ModelConfig(name="cnn-16-s1", normalize=True),
        teacher=TeacherConfig(name="cnn-72-s1", checkpoint="shipped:demo-teacher"),
        inner=InnerConfig(threat_model=ThreatModel(epsilon=training), step_size=training / 4, num_steps=10),
        optim=OptimConfig(
            epochs=epochs, learning_rate=0.1, nesterov=True, schedule="one-cycle", warmup=0.2, ema_decay=0.98
        ),
        evaluation=EvaluationConfig(threat_model=threat_model, every_epochs=2),
    )


def demo_teacher(method: str = "pgd-at") -> RunConfig:
    """The teacher of `demo`: 471 k parameters, adversarially trained on all digits."""
    student = demo(method)
    return replace(
        student,
        recipe="demo-teacher",
        data=replace(student.data, num_samples=None),
        student=ModelConfig(name="cnn-72-s1", normalize=True),
        teacher=None,
        inner=replace(student.inner, num_steps=5),
        optim=replace(student.optim, epochs=30),
    )


def fashion_mnist(method: str = "adaad") -> RunConfig:
    """5,000 Fashion-MNIST images, a student of 94 k parameters, epsilon 0.1."""
    threat_model, epochs = ThreatModel(epsilon=0.1), 26
    training = ADAAD_RADIUS * threat_model.epsilon if _base(method) == "adaad" else threat_model.epsilon
    return RunConfig(
        recipe="fashion-mnist",
        method=method,
        method_options=_epoch_options(method, epochs) | _adaad_options(method),
        data=DataConfig(name="fashion-mnist", num_samples=5000, batch_size=128, flip=True),
        student=ModelConfig(name="cnn-32", normalize=True),
        teacher=TeacherConfig(name="cnn-48", checkpoint="shipped:fashion-mnist-teacher"),
        inner=InnerConfig(threat_model=ThreatModel(epsilon=training), step_size=training / 5, num_steps=10),
        optim=OptimConfig(
            epochs=epochs, learning_rate=0.2, nesterov=True, schedule="one-cycle", warmup=0.25, ema_decay=0.99
        ),
        evaluation=EvaluationConfig(threat_model=threat_model, every_epochs=3, restarts=2),
    )


def fashion_mnist_small(method: str = "adaad") -> RunConfig:
    """All methods alike on 5,000 Fashion-MNIST images: students of about 20 k parameters, 10 epochs, epsilon 0.1."""
    full, epochs = fashion_mnist("pgd-at"), 10
    return replace(
        full,
        recipe="fashion-mnist-small",
        method=method,
        method_options=_epoch_options(method, epochs),
        student=ModelConfig(name="cnn-16", normalize=True),
        data=replace(full.data, validation_size=500),
        optim=replace(full.optim, epochs=epochs, ema_decay=0.98),
        evaluation=replace(full.evaluation, attacks=TABLE_ATTACKS, every_epochs=2, restarts=1, num_images=500),
    )


def fashion_mnist_teacher(method: str = "pgd-at") -> RunConfig:
    """The teacher of `fashion-mnist`: 210 k parameters, adversarially trained on all images."""
    threat_model = ThreatModel(epsilon=0.1)
    return RunConfig(
        recipe="fashion-mnist-teacher",
        method=method,
        data=DataConfig(name="fashion-mnist", batch_size=256, flip=True),
        student=ModelConfig(name="cnn-48", normalize=True),
        inner=InnerConfig(threat_model=threat_model, step_size=0.05, num_steps=3),
        optim=OptimConfig(epochs=16, learning_rate=0.3, nesterov=True, schedule="one-cycle", warmup=0.25),
        evaluation=EvaluationConfig(threat_model=threat_model, every_epochs=4),
    )


def cifar10_small(method: str = "adaad") -> RunConfig:
    """The paper's set-up on 500 CIFAR-10 images: a student of 290 k parameters, 60 epochs, epsilon 8/255.

    Batches of 32 images make 900 optimisation steps. Every method averages the kl over the batch: the mean over
    elements of some programs acts like a learning rate ten times smaller.
    """
    full, epochs = cifar10_rn18(method), 60
    options = dict(full.method_options) | _epoch_options(method, epochs)
    if "kl_reduction" in options:
        options["kl_reduction"] = "batchmean"
    return replace(
        full,
        recipe="cifar10-small",
        method_options=options,
        data=replace(full.data, num_samples=500, batch_size=32),
        student=ModelConfig(name="rescnn-32", normalize=True),
        teacher=TeacherConfig(name="rescnn-48", checkpoint="shipped:cifar10-teacher"),
        optim=replace(full.optim, epochs=epochs),
        evaluation=replace(full.evaluation, every_epochs=6, num_images=1000),
    )


def cifar10_teacher(method: str = "pgd-at") -> RunConfig:
    """A teacher for two cores: 650 k parameters, adversarially trained on all CIFAR-10 images, epsilon 8/255."""
    threat_model = ThreatModel(epsilon=8 / 255)
    return RunConfig(
        recipe="cifar10-teacher",
        method=method,
        data=DataConfig(name="cifar10", batch_size=128, padding=2, flip=True),
        student=ModelConfig(name="rescnn-48", normalize=True),
        # Two steps of three quarters of the radius: one large step overfits to itself (Wong et al., 2020).
        inner=InnerConfig(threat_model=threat_model, step_size=6 / 255, num_steps=2),
        optim=OptimConfig(
            epochs=16, learning_rate=0.2, nesterov=True, schedule="one-cycle", warmup=0.25, ema_decay=0.999
        ),
        evaluation=EvaluationConfig(threat_model=threat_model, every_epochs=2),
    )


def _paper(recipe: str, method: str, *, data: str, student: str, teacher: str) -> RunConfig:
    """Set-up of the paper: SGD for 200 epochs, K = 10, step 2/255, radius 8/255, the five columns of its table.

    Start and mode of the search, passes of the student, scale of the loss and weight decay are those of the method's
    own program (methods/programs.py); docs/methods.md lists them beside it.

    Args:
        recipe: Name of the recipe.
        method: Name of the method.
        data: Name of the data set.
        student: Name of the student network.
        teacher: Name of the teacher network.
    """
    threat_model, program = ThreatModel(epsilon=8 / 255), program_of(method, data)
    return RunConfig(
        recipe=recipe,
        method=method,
        method_options=program.options,
        data=DataConfig(name=data, batch_size=128, padding=4, flip=True),
        student=ModelConfig(name=student),
        teacher=TeacherConfig(name=teacher, checkpoint=None),
        inner=replace(InnerConfig(threat_model=threat_model, step_size=2 / 255, num_steps=10), **program.inner),
        optim=OptimConfig(epochs=200, schedule="piecewise", milestones=(0.5, 0.75), **program.optim),
        evaluation=EvaluationConfig(threat_model=threat_model, attacks=TABLE_ATTACKS),
    )


def cifar10_rn18(method: str = "adaad") -> RunConfig:
    """The paper's CIFAR-10 set-up: ResNet-18 from WideResNet-34-20; give teacher.checkpoint=FILE."""
    return _paper(
        "cifar10-rn18",
        method,
        data="cifar10",
        student="resnet18",
        teacher="wrn-34-20",
    )


def cifar10_mnv2(method: str = "adaad") -> RunConfig:
    """cifar10-rn18 with MobileNet-V2 as the student."""
    return replace(cifar10_rn18(method), recipe="cifar10-mnv2", student=ModelConfig(name="mobilenet-v2"))


def cifar100_rn18(method: str = "adaad") -> RunConfig:
    """The paper's CIFAR-100 set-up: ResNet-18 from WideResNet-34-10; give teacher.checkpoint=FILE."""
    return _paper(
        "cifar100-rn18",
        method,
        data="cifar100",
        student="resnet18",
        teacher="wrn-34-10",
    )


def cifar100_mnv2(method: str = "adaad") -> RunConfig:
    """cifar100-rn18 with MobileNet-V2 as the student."""
    return replace(cifar100_rn18(method), recipe="cifar100-mnv2", student=ModelConfig(name="mobilenet-v2"))


def tiny_imagenet_rn18(method: str = "adaad") -> RunConfig:
    """The CIFAR-100 set-up on Tiny-ImageNet-200, 64x64 pixels; give data.root=FOLDER and teacher.checkpoint=FILE."""
    config = cifar100_rn18(method)
    return replace(config, recipe="tiny-imagenet-rn18", data=replace(config.data, name="tiny-imagenet"))


# The first recipe of a data set is the one for other programs' students (cli/authors_program.py).
RECIPES: dict[str, Callable[..., RunConfig]] = {
    "demo": demo,
    "demo-teacher": demo_teacher,
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-small": fashion_mnist_small,
    "fashion-mnist-teacher": fashion_mnist_teacher,
    "cifar10-rn18": cifar10_rn18,
    "cifar10-mnv2": cifar10_mnv2,
    "cifar10-small": cifar10_small,
    "cifar10-teacher": cifar10_teacher,
    "cifar100-rn18": cifar100_rn18,
    "cifar100-mnv2": cifar100_mnv2,
    "tiny-imagenet-rn18": tiny_imagenet_rn18,
}


def get(name: str, **arguments: str) -> RunConfig:
    """Returns a recipe's configuration by name.

    Args:
        name: A name of RECIPES.
        **arguments: `method`, if it differs from the recipe's default.

    Raises:
        ValueError: Unknown recipe.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        remedy = f"did you mean {close[0]}?" if close else "fastadaad recipes lists all"
        raise ValueError(f"unknown recipe {name!r}: {remedy}")
    return RECIPES[name](**arguments)
