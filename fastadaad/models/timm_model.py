"""Any network of the timm library, after our normalisation."""

from torch import Tensor, nn

from fastadaad.models.normalize import ChannelValues, Normalize


class TimmModel(nn.Module):
    """timm's network `name` with random weights, for images of the sizes that the network accepts.

    Args:
        name: Name in timm, without the prefix timm/.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        mean: Subtracted from the pixels (see Normalize).
        std: Divides the pixels minus `mean`.

    Raises:
        ValueError: timm is not installed, or does not know the name.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"model timm/{name} needs timm: pip install 'fastadaad[timm]'") from error
        if not timm.is_model(name):
            close = timm.list_models(f"*{name}*")[:3] or timm.list_models()[:3]
            raise ValueError(f"model {name!r} is unknown to timm: did you mean {' or '.join(close)}?")
        self.normalize = Normalize(in_channels, mean, std)
        self.network = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        return self.network(self.normalize(x))
