"""Table of robust teachers that RobustBench publishes; none is shipped or downloaded.

RobustBench reports the accuracies, in %, at l_inf 8/255. Networks that load_model does not build are left out. The
Swish networks are normalised by RobustBench's program and not by their files: NORMALIZATION.
"""

import math
from pathlib import Path
from typing import NamedTuple

# Mean and standard deviation per channel that RobustBench's program has for the Swish networks, by data set.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# Places of the file NAME.pt: RobustBench's own folder is models/DATA/Linf.
FOLDERS = (".", "models/{data}/Linf", "teacher_models")
# A measured accuracy is below the reported one if it is this number of standard deviations below.
CLEARLY_BELOW = 3.0


class RobustTeacher(NamedTuple):
    """RobustBench's name, data set, load_model's name of the network, natural and AutoAttack accuracy in %."""

    name: str
    data: str
    network: str
    natural: float
    autoattack: float


ROBUST_TEACHERS = (
    RobustTeacher("Gowal2021Improving_70_16_ddpm_100m", "cifar10", "wrn-70-16-swish", 88.74, 66.11),
    RobustTeacher("Rebuffi2021Fixing_70_16_cutmix_ddpm", "cifar10", "wrn-70-16-swish", 88.54, 64.25),
    RobustTeacher("Gowal2021Improving_28_10_ddpm_100m", "cifar10", "wrn-28-10-swish", 87.50, 63.38),
    RobustTeacher("Gowal2020Uncovering_28_10_extra", "cifar10", "wrn-28-10-swish", 89.48, 62.76),
    RobustTeacher("Rebuffi2021Fixing_28_10_cutmix_ddpm", "cifar10", "wrn-28-10-swish", 87.33, 60.75),
    RobustTeacher("Addepalli2021Towards_WRN34", "cifar10", "wrn-34-10", 85.32, 58.04),
    RobustTeacher("Addepalli2022Efficient_WRN_34_10", "cifar10", "wrn-34-10", 88.71, 57.81),
    RobustTeacher("Chen2021LTD_WRN34_20", "cifar10", "wrn-34-20", 86.03, 57.71),
    RobustTeacher("Jia2022LAS-AT_70_16", "cifar10", "wrn-70-16", 85.66, 57.61),
    RobustTeacher("Sehwag2020Hydra", "cifar10", "wrn-28-10", 88.98, 57.14),
    RobustTeacher("Chen2021LTD_WRN34_10", "cifar10", "wrn-34-10", 85.21, 56.94),
    RobustTeacher("Wang2020Improving", "cifar10", "wrn-28-10", 87.50, 56.29),
    RobustTeacher("Jia2022LAS-AT_34_10", "cifar10", "wrn-34-10", 84.98, 56.26),
    RobustTeacher("Wu2020Adversarial", "cifar10", "wrn-34-10", 85.36, 56.17),
    RobustTeacher("Sehwag2021Proxy_R18", "cifar10", "resnet18", 84.59, 55.54),
    RobustTeacher("Cui2020Learnable_34_20", "cifar10", "wrn-34-20", 88.70, 53.57),
    RobustTeacher("Zhang2020Attacks", "cifar10", "wrn-34-10", 84.52, 53.51),
    RobustTeacher("Huang2020Self", "cifar10", "wrn-34-10", 83.48, 53.34),
    RobustTeacher("Zhang2019Theoretically", "cifar10", "wrn-34-10", 84.92, 53.08),
    RobustTeacher("Cui2020Learnable_34_10", "cifar10", "wrn-34-10", 88.22, 52.86),
    RobustTeacher("Addepalli2022Efficient_RN18", "cifar10", "resnet18", 85.71, 52.48),
    RobustTeacher("Addepalli2021Towards_RN18", "cifar10", "resnet18", 80.24, 51.06),
    RobustTeacher("Rebuffi2021Fixing_28_10_cutmix_ddpm", "cifar100", "wrn-28-10-swish", 62.41, 32.06),
    RobustTeacher("Jia2022LAS-AT_34_20", "cifar100", "wrn-34-20", 67.31, 31.91),
    RobustTeacher("Addepalli2022Efficient_WRN_34_10", "cifar100", "wrn-34-10", 68.75, 31.85),
    RobustTeacher("Jia2022LAS-AT_34_10", "cifar100", "wrn-34-10", 64.89, 30.77),
    RobustTeacher("Chen2021LTD_WRN34_10", "cifar100", "wrn-34-10", 64.07, 30.59),
    RobustTeacher("Addepalli2021Towards_WRN34", "cifar100", "wrn-34-10", 65.73, 30.35),
    RobustTeacher("Cui2020Learnable_34_20_LBGAT6", "cifar100", "wrn-34-20", 62.55, 30.20),
    RobustTeacher("Cui2020Learnable_34_10_LBGAT6", "cifar100", "wrn-34-10", 60.64, 29.33),
    RobustTeacher("Addepalli2022Efficient_RN18", "cifar100", "resnet18", 65.45, 27.67),
)


def find_teacher(name: str, data: str) -> RobustTeacher | None:
    """Returns the row of a name and a data set, or None."""
    return next((row for row in ROBUST_TEACHERS if (row.name, row.data) == (name, data)), None)


def teacher_settings(name: str, data: str) -> list[str]:
    """Returns the settings of a run whose teacher is RobustBench's `name`: network, file, and its normalisation.

    Raises:
        ValueError: The table has no such teacher for the data set, or its file is in none of FOLDERS.
    """
    teacher = find_teacher(name, data)
    if teacher is None:
        raise ValueError(f"teacher {name} is not in the table of {data}: see fastadaad teachers")
    places = [Path(folder.format(data=data)) / f"{name}.pt" for folder in FOLDERS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(
            f"teacher {name} is not here: put RobustBench's file at {' or '.join(map(str, places))}, or set "
            f"teacher.name={teacher.network} teacher.checkpoint=FILE"
        )
    settings = [f"teacher.name={teacher.network}", f"teacher.checkpoint={path}"]
    if teacher.network.endswith("-swish"):
        mean, std = NORMALIZATION[data]
        settings += [f"teacher.mean={list(mean)}", f"teacher.std={list(std)}"]
    return settings


def shortfall(name: str, data: str, accuracy: float, num_images: int) -> str | None:
    """Returns a sentence if a teacher of the table is clearly less accurate than reported, otherwise None.

    Args:
        name: RobustBench's name, such as the name of the file.
        data: Name of the data set.
        accuracy: Measured natural accuracy, a fraction.
        num_images: Number of images that it was measured on.
    """
    teacher = find_teacher(name, data)
    if teacher is None:
        return None
    reported = teacher.natural / 100
    deviation = math.sqrt(reported * (1 - reported) / num_images)
    if accuracy >= reported - CLEARLY_BELOW * deviation:
        return None
    return (
        f"{teacher.natural:.2f} % are reported for {name}, and {100 * accuracy:.1f} % on {num_images} images are "
        "clearly fewer: its normalisation or its file is another one"
    )
