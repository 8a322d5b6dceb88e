"""Peak rates of NVIDIA's cards: dense TFLOP/s without sparsity, with sums in fp32."""

import re

from fastadaad.config import Precision

_AMPERE_A100: dict[Precision, float] = {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}
_HOPPER_SXM: dict[Precision, float] = {"fp32": 67.0, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4}

# Pattern of the name that CUDA gives the card -> rates, the first match counts. From NVIDIA's data sheets of each card,
# whose figures with sparsity are twice as high; RTX 4090: white paper of the Ada architecture, table of GPUs.
PEAK_TFLOPS: dict[str, dict[Precision, float]] = {
    r"\bA100\b": _AMPERE_A100,
    r"\bA10\b": {"fp32": 31.2, "tf32": 62.5, "bf16": 125.0, "fp16": 125.0},
    r"\bH100 PCIe\b": {"fp32": 51.0, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    r"\bH100 NVL\b": {"fp32": 60.0, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5},
    r"\bH100\b": _HOPPER_SXM,
    r"\bH200 NVL\b": {"fp32": 60.0, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5},
    r"\bH200\b": _HOPPER_SXM,
    r"\bL40S\b": {"fp32": 91.6, "tf32": 183.0, "bf16": 362.0, "fp16": 362.0},
    r"\bL4\b": {"fp32": 30.3, "tf32": 60.0, "bf16": 121.0, "fp16": 121.0},
    r"\bRTX 4090$": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp16": 165.2},  # not the laptop's, not the D
}


def peak_tflops(card: str) -> dict[Precision, float] | None:
    """Returns the rates of a card by precision; None for an unknown card, and for a part of one (MIG).

    Args:
        card: Name of the card, as torch.cuda.get_device_name() returns it.
    """
    if "MIG" in card:
        return None
    return next((rates for pattern, rates in PEAK_TFLOPS.items() if re.search(pattern, card)), None)
