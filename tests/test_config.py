"""Values that a configuration refuses, and the contents of the recipes."""

import dataclasses
import math
import typing
from dataclasses import replace

import numpy
import pytest

from fastadaad import config, methods, recipes
from fastadaad import run_config as run_config_module
from fastadaad.config import InnerConfig, PrecisionConfig, TeacherPolicy, ThreatModel, parse_pixels
from fastadaad.data import Augmentation, Mixing, Sampling
from fastadaad.methods import options
from fastadaad.methods.options import MethodOptions
from fastadaad.run_config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, RunConfig, TeacherConfig
from fastadaad.runtime.text import pixels_text

SMALL_BALL = ThreatModel(epsilon=0.01)
TEACHER = TeacherConfig(name="cnn-16-s1")


def run_config(**changes) -> RunConfig:
    complete = {
        "recipe": "test",
        "data": DataConfig(name="digits"),
        "student": ModelConfig(name="cnn-16-s1"),
        "teacher": TEACHER,
        "optim": OptimConfig(epochs=2),
    }
    return RunConfig(**(complete | changes))


# A wrong value, and the message that it must raise.
REFUSED = [
    (lambda: ThreatModel(norm="l1"), "norm is 'l1'.*linf or l2"),
    (lambda: ThreatModel(epsilon=-0.1), "epsilon is -0.1"),
    (lambda: ThreatModel(epsilon=math.nan), "epsilon is nan"),
    (lambda: ThreatModel(norm="l2", epsilon=math.inf), "epsilon is inf"),
    (lambda: ThreatModel(epsilon=8), "epsilon is 8 .*8/255"),
    (lambda: InnerConfig(step_size=0.0101, threat_model=SMALL_BALL), "more than epsilon 0.0100: are the two swapped"),
    (lambda: InnerConfig(step_size=0.0201, num_steps=1, threat_model=SMALL_BALL), "more than twice epsilon.*swapped"),
    (lambda: InnerConfig(step_size=-0.001), "step_size is -0.001"),
    (lambda: InnerConfig(step_size=math.nan), "step_size is nan"),
    (lambda: InnerConfig(num_steps=0), "num_steps is 0"),
    (lambda: InnerConfig(num_steps=1.5), "num_steps is 1.5: it must be an integer"),
    (lambda: InnerConfig(num_steps=True), "num_steps is True: it must be an integer"),
    (lambda: InnerConfig(num_steps="10"), "num_steps is '10': it must be an integer"),
    (lambda: InnerConfig(lower=-math.inf), "lower is -inf: it must be a finite pixel, such as 0.0 or 1.0"),
    (lambda: InnerConfig(upper=math.inf), "upper is inf: it must be a finite pixel, such as 0.0 or 1.0"),
    (lambda: InnerConfig(upper=math.nan), "upper is nan: it must be a finite pixel"),
    (lambda: InnerConfig(step_size=None), "step_size is None: it must be finite, 0 or more"),
    (lambda: InnerConfig(step_size="x"), "'x' is not a radius in pixel units: write it as 8/255 or 0.031"),
    (lambda: InnerConfig(student_eval="no"), "student_eval is 'no': it must be True or False"),
    (lambda: InnerConfig(threat_model=0.1), r"threat_model is a float: give a ThreatModel\(norm=..., epsilon=...\)"),
    (lambda: ThreatModel(epsilon=None), "epsilon is None: it must be a finite radius, 0 or more"),
    (lambda: ThreatModel(epsilon="x"), "'x' is not a radius in pixel units"),
    (lambda: TeacherPolicy(kind="refreshed", every=1.5), "every is 1.5: it must be an integer"),
    (lambda: InnerConfig(start="zero"), "start is 'zero'.*natural"),
    (lambda: InnerConfig(lower=1.0, upper=0.0), "lower 1.0 .*swap"),
    (lambda: DataConfig(name="digits", batch_size=0), "batch_size is 0"),
    (lambda: DataConfig(name="digits", padding=-1), "padding is -1"),
    (lambda: DataConfig(name="digits", validation_size=-1), "validation_size is -1"),
    (lambda: DataConfig(name="digits", num_samples=0), "num_samples is 0"),
    (lambda: DataConfig(name="digits", cutout=-1), "cutout is -1"),
    (lambda: DataConfig(name="folder", image_size=0), "image_size is 0"),
    (lambda: DataConfig(name="folder", center_share=1.5), "center_share is 1.5.*a fraction"),
    (lambda: DataConfig(name="folder", min_crop_scale=0), "min_crop_scale is 0.*a fraction"),
    (lambda: DataConfig(name="folder", color_jitter=2), "color_jitter is 2"),
    (lambda: DataConfig(name="digits", extra_share=1), "extra_share is 1.*fraction of a batch"),
    (lambda: DataConfig(name="digits", label_smoothing=1.0), "label_smoothing is 1.0: it is a fraction"),
    (lambda: DataConfig(name="digits", mixup=-0.2), "mixup is -0.2: it must be 0 or more"),
    (lambda: DataConfig(name="digits", cutmix=-1.0), "cutmix is -1.0: it must be 0 or more"),
    (
        lambda: run_config(method="iad", data=DataConfig(name="digits", mixup=0.2)),
        "data.mixup makes label distributions and method iad needs the class.*data.mixup=0, or choose .*trades",
    ),
    (
        lambda: run_config(data=DataConfig(name="digits", label_smoothing=0.1)),
        "label_smoothing is 0.1: method adaad uses no labels, set it to 0",
    ),
    (lambda: DataConfig(name="digits", num_workers=-1), "num_workers is -1"),
    (lambda: DataConfig(name="digits", engine="ffcv"), "engine is 'ffcv'.*resident, dali or torch"),
    (lambda: DataConfig(name="folder", on_error="ignore"), "on_error is 'ignore'.*raise or skip"),
    (lambda: OptimConfig(epochs=0), "epochs is 0"),
    (lambda: OptimConfig(epochs=2, learning_rate=0.0), "learning_rate is 0.0"),
    (lambda: OptimConfig(epochs=2, learning_rate=math.nan), "learning_rate is nan"),
    (lambda: OptimConfig(epochs=2, momentum=1.0), "momentum is 1.0"),
    (lambda: OptimConfig(epochs=2, weight_decay=-5e-4), "weight_decay is -0.0005"),
    (lambda: OptimConfig(epochs=2, warmup=1.0), "warmup is 1.0"),
    (lambda: OptimConfig(epochs=2, ema_decay=1.0), "ema_decay is 1.0"),
    (lambda: OptimConfig(epochs=2, schedule="step"), "schedule is 'step'.*one-cycle"),
    (lambda: OptimConfig(epochs=200, milestones=(0.5, 150)), r"milestones \[150\].*0.5"),
    (lambda: OptimConfig(epochs=2, milestones=(0.5,), schedule="cosine"), "milestones.*cosine.*milestones="),
    (lambda: OptimConfig(epochs=2, momentum=0.0, nesterov=True), "nesterov needs momentum"),
    (lambda: OptimConfig(epochs=2, optimizer="adagrad"), "is .adagrad.: choose sgd, adam, adamw, lars or lamb"),
    (lambda: OptimConfig(epochs=2, optimizer_backend="apex"), "optimizer_backend is 'apex': choose auto or foreach"),
    (lambda: OptimConfig(epochs=2, optimizer="lamb", nesterov=True), "nesterov belongs to sgd.*nesterov=false"),
    (lambda: OptimConfig(epochs=2, optimizer="adamw", nesterov=True), "nesterov belongs to sgd, not to adamw"),
    (lambda: OptimConfig(epochs=2, base_batch_size=0), "base_batch_size is 0"),
    (lambda: OptimConfig(epochs=2, micro_batch=0), "micro_batch is 0"),
    (lambda: OptimConfig(epochs=1, swa_begin=1.0), "swa_begin is 1.0"),
    (lambda: OptimConfig(epochs=1, swa_begin=0.5, ema_decay=0.9), "two ways to average"),
    (lambda: OptimConfig(epochs=1, awp_gamma=-1.0), "awp_gamma is -1.0"),
    (lambda: OptimConfig(epochs=1, awp_begin=-1), "awp_begin is -1"),
    (lambda: OptimConfig(epochs=1, grad_clip=0.0), "grad_clip is 0.0: it must be finite and above 0, such as 1.0"),
    (lambda: OptimConfig(epochs=1, grad_clip=-1.0), "grad_clip is -1.0: it must be finite and above 0"),
    (lambda: OptimConfig(epochs=1, grad_clip=math.nan), "grad_clip is nan: it must be finite and above 0"),
    (lambda: OptimConfig(epochs=1, grad_clip=math.inf), "grad_clip is inf: .*leave it out to clip nothing"),
    (lambda: EvaluationConfig(restarts=0), "restarts is 0"),
    (lambda: EvaluationConfig(restarts=3_000_000_000), "restarts is 3000000000: it must be 1 to 1000"),
    (lambda: EvaluationConfig(batch_size=0), "batch_size is 0"),
    (lambda: EvaluationConfig(every_epochs=0), "every_epochs is 0"),
    (lambda: EvaluationConfig(num_images=0), "num_images is 0"),
    (lambda: EvaluationConfig(attacks=()), "attacks is empty"),
    (lambda: EvaluationConfig(attacks=("natural", "fgms")), "attack 'fgms'.*pgd20"),
    (lambda: EvaluationConfig(validation_attack="pgd0"), "attack 'pgd0'"),
    (lambda: run_config(teacher=None), "adaad needs a teacher.*teacher.checkpoint"),
    (lambda: run_config(method="adad"), "method 'adad'.*adaad"),
    (lambda: TeacherPolicy(kind="lazy"), "teacher policy 'lazy'.*linearized"),
    (lambda: TeacherPolicy(kind="refreshed", every=0), "every is 0"),
    (lambda: TeacherPolicy(kind="linearized", top=0), "top is 0"),
    (lambda: TeacherPolicy(every=2), "exact queries the teacher in every step.*leave out every"),
    (lambda: TeacherPolicy(kind="refreshed", top=2), "top belongs to linearized, not to refreshed"),
    (
        lambda: run_config(method="rslad", teacher=replace(TEACHER, policy=TeacherPolicy(kind="refreshed"))),
        "teacher policy refreshed: the inner loop of rslad does not go.*teacher.policy=exact",
    ),
    (lambda: PrecisionConfig(student="fp64"), "precision.student is 'fp64'.*bf16"),
    (lambda: PrecisionConfig(teacher="int8"), "precision.teacher is 'int8'.*bf16"),
    (lambda: run_config(layout="NHWC"), "layout is 'NHWC'.*channels_last"),
    (lambda: run_config(compile_preset="max"), "compile_preset is 'max'.*long"),
    (lambda: run_config(compile_preset="long", deterministic=True), "preset long.*deterministic.*=default"),
    (lambda: run_config(method_options={"lambda": 1}), "option 'lambda'.*adversarial_weight"),
    (lambda: run_config(method_options={"adversarial_weight": 1.5}), r"adversarial_weight is 1.5.*\[0, 1\]"),
    (lambda: run_config(method_options={"kl_reduction": "sum"}), "kl_reduction is 'sum'.*batchmean"),
    (lambda: run_config(log_every=0), "log_every is 0"),
    (
        lambda: run_config(method="saad", optim=OptimConfig(epochs=2, micro_batch=8)),
        "saad normalises its weights.*micro_batch: leave it out",
    ),
    (
        lambda: run_config(early_stop_epochs=2, data=DataConfig(name="digits", validation_size=0)),
        "validation split.*data.validation_size",
    ),
    (
        lambda: run_config(early_stop_epochs=2, evaluation=EvaluationConfig(every_epochs=3)),
        "early_stop_epochs is 2.*every_epochs",
    ),
]


@pytest.mark.parametrize(("build", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_configuration_that_makes_no_sense_is_refused_in_one_line(build, words):
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


# A valid object of each class whose numbers are checked.
VALID = [
    ThreatModel(),
    InnerConfig(),
    TeacherPolicy(kind="refreshed", every=2),
    DataConfig(name="digits"),
    OptimConfig(epochs=2),
    EvaluationConfig(),
    run_config(),
    MethodOptions(),
    Augmentation(),
    Mixing(num_classes=2),
    Sampling(batch_size=8),
]


def numbers_of(settings: object) -> list[tuple[object, str, bool]]:
    """The settings, the name of each of their fields that holds a number, and whether it holds a tuple of them."""
    found = []
    for name, hint in typing.get_type_hints(type(settings)).items():
        parts = typing.get_args(hint)
        if float in (hint, *parts) or int in (hint, *parts):
            found.append((settings, name, Ellipsis in parts))
    return found


NUMBERS = [number for settings in VALID for number in numbers_of(settings)]


def test_the_classes_with_numbers_are_complete():
    for module in (config, run_config_module, options):
        for cls in vars(module).values():
            if dataclasses.is_dataclass(cls) and any(field.type in (int, float) for field in dataclasses.fields(cls)):
                assert cls in map(type, VALID)
    assert {"awp_gamma", "learning_rate", "weight_decay", "milestones", "epochs", "temperature", "rank_timeout_s"} <= {
        name for _, name, _ in NUMBERS
    }


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize(("settings", "name", "is_tuple"), NUMBERS, ids=str)
def test_no_setting_takes_a_number_that_is_not_finite(settings, name, is_tuple, value):
    with pytest.raises(ValueError, match=rf"{name}.* is {value}: it must be |{name} is {value}") as caught:
        replace(settings, **{name: (0.5, value) if is_tuple else value})
    assert ": " in str(caught.value)  # a remedy follows


def test_a_number_that_is_not_finite_is_refused_with_an_example():
    with pytest.raises(ValueError, match=r"^weight_decay is inf: it must be a finite number, such as 0.0005$"):
        OptimConfig(epochs=2, weight_decay=math.inf)
    with pytest.raises(ValueError, match=r"^awp_gamma is inf: it must be a finite number, such as 0.0$"):
        OptimConfig(epochs=2, awp_gamma=math.inf)
    with pytest.raises(ValueError, match=r"^batch_size is 12.5: it must be an integer, such as 128$"):
        DataConfig(name="digits", batch_size=12.5)


def test_extreme_values_that_make_sense_are_accepted():
    ThreatModel(epsilon=0.0)
    ThreatModel(epsilon=numpy.float32(0.1))
    InnerConfig(num_steps=numpy.int64(3))
    ThreatModel(norm="l2", epsilon=2.0)
    InnerConfig(step_size=10 / 255, threat_model=ThreatModel(epsilon=8 / 255), num_steps=1)  # one step of 1.25 epsilon
    InnerConfig(step_size=2 / 255, threat_model=ThreatModel(epsilon=0.0))
    run_config(teacher=None, method="pgd-at")
    run_config(teacher=replace(TEACHER, policy=TeacherPolicy(kind="linearized", every=50, top=1000)))


# A policy as a string, and as an object.
POLICIES = [
    ("exact", TeacherPolicy()),
    ("refreshed", TeacherPolicy(kind="refreshed")),
    ("refreshed(every=8)", TeacherPolicy(kind="refreshed", every=8)),
    ("linearized(top=3)", TeacherPolicy(kind="linearized")),
    ("linearized(top=2,every=10)", TeacherPolicy(kind="linearized", top=2, every=10)),
]


@pytest.mark.parametrize(("text", "policy"), POLICIES, ids=str)
def test_a_teacher_policy_is_printed_as_the_string_that_it_is_read_from(text, policy):
    assert TeacherPolicy.parse(text) == policy
    assert str(policy) == text


def test_the_string_of_a_teacher_policy_may_have_blanks_any_order_and_no_defaults():
    assert TeacherPolicy.parse(" linearized ( every = 4, top = 1 ) ") == TeacherPolicy(
        kind="linearized", top=1, every=4
    )
    assert TeacherPolicy.parse("linearized") == TeacherPolicy.parse("linearized()") == TeacherPolicy(kind="linearized")


@pytest.mark.parametrize(
    "text",
    [
        "", "refreshed(5)", "refreshed(every=)", "refreshed(every=1.5)", "refreshed(every=-1)", "refreshed(every=5=6)",
        "refreshed(every=5,every=6)", "refreshed(every=5,)", "refreshed(every=5", "refreshed every=5",
        "refreshed(steps=5)", "refreshed(every=\u00b2)", "refreshed(every=5)(every=5)",
    ],
)  # fmt: skip
def test_a_string_in_another_form_than_a_teacher_policy_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"cannot be read: write exact, refreshed\(every=5\)") as caught:
        TeacherPolicy.parse(text)
    assert "\n" not in str(caught.value)


def test_a_teacher_policy_without_an_interval_is_adaptive():
    assert [TeacherPolicy.parse(text).is_adaptive for text, _ in POLICIES] == [False, True, False, True, False]


def test_configurations_cannot_be_changed_or_given_by_position():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ThreatModel().epsilon = 1.0
    with pytest.raises(TypeError):
        ThreatModel("linf", 0.1)


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("method", methods.METHODS)
def test_a_recipe_is_complete_under_its_own_name(name, method):
    config = recipes.get(name)
    assert (config.recipe, config) == (name, recipes.get(name, method=config.method))
    if config.teacher is not None or not methods.get(method).needs_teacher:
        assert recipes.get(name, method=method).method == method


def test_an_unknown_recipe_is_refused_with_the_closest_or_with_the_list():
    with pytest.raises(ValueError, match="unknown recipe 'abacus': fastadaad recipes lists all"):
        recipes.get("abacus")
    with pytest.raises(ValueError, match=r"did you mean fashion-mnist\?"):
        recipes.get("fashon-mnist")


def test_cifar10_rn18_has_the_settings_of_the_paper():
    config = recipes.get("cifar10-rn18")
    assert (config.method, config.student.name, config.teacher.name) == ("adaad", "resnet18", "wrn-34-20")
    assert (config.data.name, config.data.batch_size, config.data.padding, config.data.flip) == (
        "cifar10",
        128,
        4,
        True,
    )
    optim = config.optim
    assert (optim.epochs, optim.learning_rate, optim.momentum, optim.weight_decay) == (200, 0.1, 0.9, 5e-4)
    assert optim.schedule == "piecewise"
    assert [milestone * optim.epochs for milestone in optim.milestones] == [100, 150]
    assert (config.inner.num_steps, config.inner.step_size) == (10, 2 / 255)
    for threat_model in (config.inner.threat_model, config.evaluation.threat_model):
        assert threat_model == ThreatModel(norm="linf", epsilon=8 / 255)
    assert not config.student.normalize
    assert not config.teacher.normalize


@pytest.mark.parametrize(
    ("recipe", "method", "options"),
    [
        ("fashion-mnist-small", "iad", {"introspection_begin": 3}),
        ("fashion-mnist-small", "saad", {"igdm_ramp_epochs": 10}),
        ("demo", "adaad+igdm", {"igdm_ramp_epochs": 60, "kl_reduction": "batchmean", "clean_statistics": False}),
        ("cifar10-rn18", "adaiad", {"kl_reduction": "batchmean", "introspection_begin": 60}),
        ("cifar10-rn18", "adaad", {"kl_reduction": "mean", "statistics": ()}),
        ("cifar10-rn18", "adaad+igdm", {"kl_reduction": "batchmean", "igdm_weight": 1.0, "igdm_ramp_epochs": 200}),
        ("cifar10-rn18", "rslad", {"kl_reduction": "mean", "loss_scale": 1.0}),
        ("cifar100-rn18", "rslad", {"kl_reduction": "mean", "loss_scale": 10.0}),
        ("cifar10-rn18", "ard", {"kl_reduction": "mean", "temperature": 30.0}),
        ("cifar10-rn18", "iad", {"kl_reduction": "batchmean", "temperature": 1.0}),
        ("cifar10-rn18", "akd", {"kl_reduction": "batchmean", "temperature": 1.0}),
        ("cifar10-rn18", "trades+igdm", {"statistics": ("natural", "adversarial", "natural", "opposite")}),
        ("cifar100-mnv2", "saad", {"igdm_weight": 10.0, "igdm_ramp_epochs": 200}),
        ("tiny-imagenet-rn18", "adaad+igdm", {"igdm_weight": 10.0, "kl_reduction": "batchmean"}),
    ],
)
def test_a_recipe_gives_a_method_its_authors_options(recipe, method, options):
    config = recipes.get(recipe, method=method)
    effective = methods.get(method, **config.method_options).options
    assert {name: getattr(effective, name) for name in options} == options


PROGRAMS_OF_PAPERS = {  # start, student in eval mode during the search, learning rate, weight decay
    "adaad": (None, True, 0.1, 5e-4), "adaiad": (None, True, 0.1, 5e-4), "pgd-at": (None, True, 0.1, 5e-4),
    "trades": (None, True, 0.1, 2e-4), "rslad": (None, True, 0.1, 2e-4), "saad": (None, True, 0.1, 2e-4),
    "adaad+igdm": (None, True, 0.1, 2e-4), "lbgat-fixed": (None, True, 0.1, 2e-4), "mart": (None, True, 0.01, 3.5e-3),
    "ard": ("uniform-unclipped", False, 0.1, 2e-4), "iad": ("uniform-unclipped", False, 0.1, 2e-4),
    "akd": ("uniform-unclipped", False, 0.1, 2e-4),
}  # fmt: skip


@pytest.mark.parametrize("method", [*methods.METHODS, "adaad+igdm"])
def test_a_papers_recipe_searches_and_decays_as_the_methods_own_program(method):
    config = recipes.get("cifar10-rn18", method=method)
    found = config.inner.start, config.inner.student_eval, config.optim.learning_rate, config.optim.weight_decay
    assert found == PROGRAMS_OF_PAPERS[method]


def test_the_shipped_recipes_keep_one_form_for_all_methods():
    for name in ("demo", "fashion-mnist", "fashion-mnist-small"):
        for method in methods.METHODS:
            config = recipes.get(name, method=method)
            assert "statistics" not in config.method_options
            assert (config.inner.start, config.inner.student_eval, config.optim.weight_decay) == (None, True, 5e-4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.031, "0.031"),
        (1 / 255, "1/255"),
        (10 / 255, "10/255"),
        (0.0, "0"),
        (1.0, "1"),
        (0.1, "0.1"),
        (0.2, "0.2"),
    ],
)
def test_whole_255ths_are_written_as_fractions(value, text):
    assert pixels_text(value) == text
    assert parse_pixels(text) == pytest.approx(value, rel=1e-12)
