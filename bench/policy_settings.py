"""Settings whose students are compared: teacher policies, precisions of the teacher, fewer steps, another method."""

from dataclasses import dataclass, replace

from fastadaad import recipes
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.config_io import override
from fastadaad.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to train the students of one recipe."""

    policy: str = "exact"
    teacher_precision: str = "fp32"
    overrides: tuple[str, ...] = ()
    """Changes of the inner search."""
    note: str = ""
    """The changes in a few words, for the table."""
    method: str = "adaad"

    @property
    def name(self) -> str:
        """Text of the table's first column."""
        if self.method != "adaad":
            return self.method
        parts = [
            self.policy,
            self.note,
            "" if self.teacher_precision == "fp32" else f"teacher {self.teacher_precision}",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A recipe, changes of it for all settings, and the settings; the first one is the baseline."""

    recipe: str
    overrides: tuple[str, ...]
    settings: tuple[Setting, ...]
    num_images: int | None = None
    """Test images under PGD-20; None for all."""

    def config(self, setting: Setting, seed: int, overrides: tuple[str, ...] = ()) -> RunConfig:
        """Returns the configuration of one student; `overrides` come last."""
        base = recipes.get(self.recipe, method=setting.method)
        config = override(base, [*self.overrides, *setting.overrides, *overrides])
        if setting.method != "adaad":
            return replace(config, seed=seed, teacher=None)
        assert config.teacher is not None
        return replace(
            config,
            seed=seed,
            teacher=replace(config.teacher, policy=TeacherPolicy.parse(setting.policy)),
            precision=PrecisionConfig(student="fp32", teacher=setting.teacher_precision),
        )


SHORT = Table(
    recipe="fashion-mnist-small",
    overrides=("student.name=rescnn-8", "mode=compiled", "evaluation.every_epochs=100"),
    settings=(
        Setting(),
        Setting(policy="refreshed(every=10)"),
        Setting(policy="refreshed(every=8)"),
        Setting(policy="refreshed(every=5)"),
        Setting(policy="refreshed"),
        Setting(policy="linearized(top=3,every=10)"),
        Setting(policy="linearized(top=1,every=10)"),
        Setting(policy="linearized(top=3)"),
        Setting(policy="refreshed(every=8)", teacher_precision="bf16"),
    ),
)

HOLDS = Setting(
    policy="directional(every=4)",
    overrides=("inner.step_factors=[1,1,1,1,1,1,1,0.5,0.5,0.25]",),
    note="smaller last steps",
)

# The policies that the judge found best for the students of a long training, and the one that fails there.
LONG = Table(
    recipe="fashion-mnist",
    overrides=("data.num_samples=2000", "optim.epochs=60", "evaluation.every_epochs=10", "mode=compiled"),
    settings=(
        Setting(),
        Setting(method="pgd-at"),
        Setting(policy="directional(every=3)"),
        HOLDS,
        Setting(
            overrides=("inner.num_steps=3", "inner.step_factors=[3,1.5,0.75]"),
            note="3 shrinking steps",
        ),
        Setting(policy="refreshed(every=10)"),
    ),
)

# Exact and pgd-at are students of bench/cifar10.py too.
CIFAR10 = Table(
    recipe="cifar10-small",
    overrides=("mode=compiled",),
    settings=(Setting(), Setting(method="pgd-at"), HOLDS, Setting(policy="refreshed(every=10)")),
    num_images=1000,
)

TABLES = {"short": SHORT, "long": LONG, "cifar10": CIFAR10}
