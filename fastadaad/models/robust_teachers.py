"""Table of robust teachers that RobustBench publishes; none is shipped or downloaded.

RobustBench reports the accuracies, in %, at l_inf 8/255. Two kinds of networks are left out: networks that load_model
does not build (other activations or shortcuts), and networks whose normalisation is in RobustBench's program instead of
the file.
"""

from typing import NamedTuple


class RobustTeacher(NamedTuple):
    """RobustBench's name, data set, load_model's name of the network, natural and AutoAttack accuracy in %."""

    name: str
    data: str
    network: str
    natural: float
    autoattack: float


ROBUST_TEACHERS = (
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
    RobustTeacher("Jia2022LAS-AT_34_20", "cifar100", "wrn-34-20", 67.31, 31.91),
    RobustTeacher("Addepalli2022Efficient_WRN_34_10", "cifar100", "wrn-34-10", 68.75, 31.85),
    RobustTeacher("Jia2022LAS-AT_34_10", "cifar100", "wrn-34-10", 64.89, 30.77),
    RobustTeacher("Chen2021LTD_WRN34_10", "cifar100", "wrn-34-10", 64.07, 30.59),
    RobustTeacher("Addepalli2021Towards_WRN34", "cifar100", "wrn-34-10", 65.73, 30.35),
    RobustTeacher("Cui2020Learnable_34_20_LBGAT6", "cifar100", "wrn-34-20", 62.55, 30.20),
    RobustTeacher("Cui2020Learnable_34_10_LBGAT6", "cifar100", "wrn-34-10", 60.64, 29.33),
    RobustTeacher("Addepalli2022Efficient_RN18", "cifar100", "resnet18", 65.45, 27.67),
)
