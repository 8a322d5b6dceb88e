"""Networks by name; each takes pixels [B, C, H, W] in [0, 1] and returns logits [B, N]."""

from fastadaad.models.factory import MODEL_NAMES, canonical_name, create_model, load_model
from fastadaad.models.mobilenet_v2 import MobileNetV2
from fastadaad.models.normalize import Normalize
from fastadaad.models.resnet import PreActResNet, ResNet
from fastadaad.models.small_cnn import SmallCNN
from fastadaad.models.small_resnet import SmallResNet
from fastadaad.models.weights_reading import WeightsError, load_weights, read_state_dict
from fastadaad.models.wide_resnet import WideResNet

__all__ = [
    "MODEL_NAMES",
    "MobileNetV2",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "SmallCNN",
    "SmallResNet",
    "WeightsError",
    "WideResNet",
    "canonical_name",
    "create_model",
    "load_model",
    "load_weights",
    "read_state_dict",
]
