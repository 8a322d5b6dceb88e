"""Accuracy of a network under attack, over a set of images."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastadaad.config import Layout, Mode, PrecisionConfig, ThreatModel, require_integer, require_type
from fastadaad.evaluation.attack_names import AUTOATTACK_STAGES, RANDOM_AUTOATTACK
from fastadaad.evaluation.attacks import (
    AttackSpec,
    GradientAttack,
    SearchSettings,
    check_attacks,
    check_finite,
    parse_attack,
)
from fastadaad.evaluation.autoattack import AutoAttackStage
from fastadaad.evaluation.batches import Batches, Images, batches_of, has_fixed_order, known_num_images
from fastadaad.evaluation.checks import PassChecks
from fastadaad.evaluation.gradient_pass import GradientPass, search_network
from fastadaad.evaluation.survival import Keeper, attack_survivors, sha256_of_tensors
from fastadaad.inner.caller import bare, check_not_quantized
from fastadaad.inner.frozen import frozen
from fastadaad.runtime.precision import resolved

Progress = Callable[[str, int], None]

DEFAULT_ATTACKS = ("natural", "pgd20")
DEFAULT_THREAT_MODEL = ThreatModel()
# A gap above this between gradient ascent and a stronger attack means that the gradients mislead. Adversarially trained
# networks show one to five points (the table of the AdaAD paper: at most 5.4).
MASKING_GAP = 0.1


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """Accuracy of a network under one attack: a row of the table of results.

    Attributes:
        attack: Name of the attack.
        restarts: Number of restarts; 1 for an attack without a random start.
        norm: Norm of the threat model.
        epsilon: Radius of the threat model, in pixel units.
        num_images: Number of images evaluated.
        accuracy: Fraction of all images that are classified correctly before the attack and after each of its restarts
            and stages.
        seconds: Duration of the attack; a resumed one includes the time before the interruption.
        parts: Name, accuracy after it and seconds of each stage, for an attack with several stages.
        notes: Facts that a reader of the accuracy needs, such as a stage that was left out.
    """

    attack: str
    restarts: int
    norm: str
    epsilon: float
    num_images: int
    accuracy: float
    seconds: float
    parts: tuple[tuple[str, float, float], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a result that no evaluation gives; it may come from a file."""
        if not (0 <= self.accuracy <= 1 and self.num_images >= 1 and self.restarts >= 1 and self.seconds >= 0):
            raise ValueError(f"accuracy {self.accuracy} of {self.num_images} images is no result of an evaluation")

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval of the accuracy (normal approximation of the binomial)."""
        return 1.96 * math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_images)

    def row(self) -> dict[str, Any]:
        """Returns the fields and the margin as columns of a table; parts and notes become strings."""
        row = asdict(self) | {"margin": self.margin}
        row["parts"] = "; ".join(
            f"{stage} {accuracy:.4f} in {seconds:.1f} s" for stage, accuracy, seconds in self.parts
        )
        row["notes"] = "; ".join(self.notes)
        return row


def evaluate(
    model: nn.Module,
    data: Images,
    attacks: str | Iterable[str] = DEFAULT_ATTACKS,
    *,
    threat_model: ThreatModel = DEFAULT_THREAT_MODEL,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int = 500,
    progress: Progress = lambda stage, num_images: None,
    state: Path | None = None,
    mode: Mode = "auto",
    precision: PrecisionConfig | str | None = None,
    layout: Layout = "auto",
    fold: bool = True,
    surrogate: nn.Module | None = None,
) -> list[AttackResult]:
    """Evaluates the accuracy of a network on all images of `data` under each attack.

    The network runs in eval mode, without a wrapper of torch.compile, DistributedDataParallel or DataParallel, and has
    its own mode again afterwards. The caller may be in any grad mode or in inference mode.

    Args:
        model: Network from pixels [B, C, H, W] in [0, 1] to logits [B, N]; a normalisation belongs inside it.
        data: Images, fp32 in [0, 1], and class numbers, int64, as one of

            - a DataLoader whose batches are (x_natural [B, C, H, W], labels [B]). It is iterated once per attack, and
              may shuffle. Images that it leaves out (drop_last) are not counted;
            - a torch Dataset whose samples are (image [C, H, W], label), read in its order;
            - a pair of tensors (x_natural [N, C, H, W], labels [N]);
            - a function without arguments that returns batches as those of a DataLoader. It is called once per attack.
              If it has a length, that is its number of images.

            Batches are moved to the device of the model, except those of a function, which have to be there already.
        attacks: Names of attacks; see `parse_attack`. A single string is one attack.
        threat_model: Norm and radius of the attacks; default: l_inf with 8/255.
        restarts: Number of restarts of an attack with a random start. An image counts as robust if it survives all.
        seed: Seed of the first restart; the others have the seeds after it.
        batch_size: Images per batch of a Dataset or a pair.
        progress: Function that is called with the name of the attack stage and the number of images after each batch.
        state: Folder in which cw, cw-l2 and AutoAttack's stages save their progress after each batch, so that the same
            call resumes them. Needs images in a fixed order.
        mode: Execution of gradient attacks: `eager`; `compiled`, by torch.compile; `auto`: compiled if the attack is
            long enough to gain by it (inner/compile_choice.py). `auto` needs the number of images: it is eager for a
            function or a Dataset without a length, unless another attack has counted them before.
        precision: Arithmetic of the search for adversarial images, a PrecisionConfig or a string such as `"tf32"`;
            that of the student counts. `auto`: tf32 on CUDA devices with tensor cores, else fp32; bf16 would weaken the
            attack. The network itself classifies in fp32, without TF32.
        layout: Memory layout of the folded copy's convolutions; `auto` measures once per machine.
        fold: Search on a folded copy of the network (docs/folding.md); accuracy is always the network's own.
        surrogate: Another network on the same device, whose adversarial images are tried on the model: a transfer
            attack. For fgsm, pgdN and cw-linfN. Default: the model itself is attacked.

    Returns:
        One result per attack, in the order of `attacks`.

    Raises:
        ValueError: An attack is unknown, does not fit the threat model or lacks its library (raised before anything
            runs), `data` is of another kind, holds no images, gives another number of them to a later attack, has
            pixels outside [0, 1] in its first batch or labels outside 0..N-1. Or the network returns something else
            than fp32 logits [B, N] of two classes or more, NaN or inf, or is quantised under an attack.
    """
    specs = [parse_attack(name) for name in ([attacks] if isinstance(attacks, str) else attacks)]
    check_attacks([spec.name for spec in specs], threat_model)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}: give a torch.nn.Module, and the images after it")
    if any(spec.name != "natural" for spec in specs):
        check_not_quantized("model", model)
    require_type("threat_model", threat_model, ThreatModel, "a ThreatModel(norm=..., epsilon=...)")
    require_integer("restarts", restarts, 1)
    require_integer("seed", seed, 0)
    check_surrogate(surrogate, specs)
    device = _device(model)
    concrete = resolved(PrecisionConfig.parse(precision), device, on_tensor_cores="tf32")
    settings = SearchSettings(mode=mode, precision=concrete, layout=layout, fold=fold)
    if state is not None and not has_fixed_order(data):
        raise ValueError("state needs images in a fixed order, and data shuffles: use a DataLoader with shuffle=False")
    batches = batches_of(data, device, batch_size)
    results, model = [], bare(model)
    others = [] if surrogate is None else [bare(surrogate)]
    notes = () if surrogate is None else ("adversarial images of another network",)
    checks = PassChecks(model, device)
    with torch.inference_mode(False), torch.enable_grad(), frozen(model, *others):
        for spec in specs:
            num_restarts = restarts if any(attack.is_random for _, attack in spec.stages) else 1
            # One generator per restart, so that further restarts keep the starts of the first ones.
            generators = [torch.Generator(device).manual_seed(seed + restart) for restart in range(num_restarts)]
            attack = spec.stages[0][1]
            if isinstance(attack, GradientAttack):  # always the only stage
                num_images = known_num_images(data) if checks.num_images is None else checks.num_images
                one_pass = GradientPass(spec.name, attack, model, threat_model, settings, num_images, *others)
                measured = _on_batches(one_pass, batches(), checks, generators, progress)
                measured["notes"] = () if spec.name == "natural" else notes
            else:
                measured = _on_survivors(
                    model, spec, threat_model, batches(), checks, generators, progress, state, settings
                )
            results.append(
                AttackResult(
                    attack=spec.name,
                    restarts=num_restarts,
                    norm=threat_model.norm,
                    epsilon=threat_model.epsilon,
                    **measured,
                )
            )
    return results


def check_surrogate(surrogate: nn.Module | None, specs: Sequence[AttackSpec]) -> None:
    """Raises ValueError for an attack that needs the answers of the network that it attacks."""
    if surrogate is None:
        return
    if not isinstance(surrogate, nn.Module):
        raise ValueError(f"surrogate is a {type(surrogate).__name__}: give a torch.nn.Module")
    for spec in specs:
        if not isinstance(spec.stages[0][1], GradientAttack):
            raise ValueError(
                f"attack {spec.name} asks the network that it attacks: with a surrogate choose fgsm, pgdN or cw-linfN"
            )


def _device(model: nn.Module) -> torch.device:
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _on_batches(
    one_pass: GradientPass,
    batches: Batches,
    checks: PassChecks,
    generators: Sequence[torch.Generator],
    progress: Progress,
) -> dict[str, Any]:
    """Returns num_images, accuracy and seconds of an attack that needs one pass over the batches."""
    device = _device(one_pass.model)
    started, num_images = time.perf_counter(), 0
    num_robust, nonfinite = torch.zeros(2, dtype=torch.int64, device=device)
    for x_natural, labels in checks.admit(batches):
        num_robust += one_pass.survives(x_natural, labels, generators, nonfinite).sum()
        num_images += len(labels)
        progress(one_pass.name, len(labels))
    checks.finish(num_images)
    robust, num_nonfinite = torch.stack([num_robust, nonfinite]).tolist()  # waits for the device
    check_finite(one_pass.name, num_nonfinite)
    return {"num_images": num_images, "accuracy": robust / num_images, "seconds": time.perf_counter() - started}


def _on_survivors(
    model: nn.Module,
    spec: AttackSpec,
    threat_model: ThreatModel,
    batches: Batches,
    checks: PassChecks,
    generators: Sequence[torch.Generator],
    progress: Progress,
    state: Path | None,
    settings: SearchSettings,
) -> dict[str, Any]:
    """Returns num_images, accuracy, seconds, parts and notes of an attack whose stages attack the survivors only.

    `batches` is read once, so all stages have the same images in the same order. All images are on the device at once;
    batches of survivors are as large as the first of `batches`.
    """
    pairs = list(checks.admit(batches))
    checks.finish(sum(len(labels) for _, labels in pairs))
    batch_size = len(pairs[0][1])
    x_natural, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    network, precision, unfolded = search_network(model, *pairs[0], threat_model, settings, spec.name)
    left_out = [attack.note(network, x_natural) for _, attack in spec.stages if isinstance(attack, AutoAttackStage)]
    facts = [
        spec.name, asdict(threat_model), asdict(precision), batch_size,
        [generator.initial_seed() for generator in generators],
        sha256_of_tensors(*model.state_dict().values()), sha256_of_tensors(x_natural, labels),
    ]  # fmt: skip
    survival = attack_survivors(
        model,
        network,
        spec,
        threat_model,
        x_natural,
        labels,
        precision=precision,
        batch_size=batch_size,
        generators=generators,
        keeper=Keeper(state, spec.name, facts),
        progress=progress,
    )
    names = [stage for stage, _ in spec.stages]
    return {
        "num_images": len(labels),
        "accuracy": survival.accuracies[-1],
        "seconds": sum(survival.seconds),
        "parts": tuple(zip(names, survival.accuracies, survival.seconds, strict=True)) if len(names) > 1 else (),
        "notes": tuple(note for note in (unfolded, *left_out) if note is not None),
    }


def merge(shards: Sequence[AttackResult]) -> AttackResult:
    """Merges the results of one attack on disjoint shards of the images.

    Args:
        shards: One result per shard, all of the same attack, threat model and restarts.

    Returns:
        The result on all images, with the accuracy that one evaluation of all of them gives. Seconds are the sum;
        notes are joined without duplicates.
    """
    num_images = sum(shard.num_images for shard in shards)

    def mean(values: Iterable[float]) -> float:
        # Each value is an integer number of images; counting them makes the merged accuracy exact.
        return sum(round(value * shard.num_images) for value, shard in zip(values, shards, strict=True)) / num_images

    return replace(
        shards[0],
        num_images=num_images,
        accuracy=mean(shard.accuracy for shard in shards),
        seconds=sum(shard.seconds for shard in shards),
        parts=tuple(
            (stage[0][0], mean(accuracy for _, accuracy, _ in stage), sum(seconds for _, _, seconds in stage))
            for stage in zip(*(shard.parts for shard in shards), strict=True)
        ),
        notes=tuple(dict.fromkeys(note for shard in shards for note in shard.notes)),
    )


def num_stages(attacks: Iterable[str]) -> int:
    """Returns the number of passes of `evaluate` over the images: one for each stage of each attack."""
    return sum(len(parse_attack(name).stages) for name in attacks)


def masking_warning(results: Iterable[AttackResult]) -> str | None:
    """Returns a warning if the gradients of the network seem masked.

    Args:
        results: Results of one network on the same images.

    Returns:
        One line if the accuracy under the strongest other attack in the same ball (autoattack, autoattack-rand, a
        stage of AutoAttack, pgdN-targeted, cw-linfN, cw-l2) is more than MASKING_GAP below that under ascent of the
        cross-entropy (fgsm, pgdN; pgdN-targeted and cw-linfN if these are missing); otherwise None. cw is left out, as
        it has no radius.
    """
    accuracy = {result.attack: result.accuracy for result in results}
    others = [name for name in accuracy if name.startswith("cw-linf") or name.endswith("-targeted")]
    ascent = [name for name in accuracy if name == "fgsm" or (name.startswith("pgd") and name not in others)] or others
    strong = [
        name for name in accuracy if name in ("autoattack", RANDOM_AUTOATTACK, "cw-l2", *AUTOATTACK_STAGES, *others)
    ]
    if not ascent or not strong:
        return None
    weakest, strongest = min(ascent, key=accuracy.__getitem__), min(strong, key=accuracy.__getitem__)
    if accuracy[weakest] - accuracy[strongest] <= MASKING_GAP:
        return None
    return (
        f"accuracy is {100 * accuracy[strongest]:.1f} % under {strongest} and {100 * accuracy[weakest]:.1f} % under "
        f"{weakest}: the gradients of this model are masked, and its accuracy under gradient attacks is not reliable"
    )
