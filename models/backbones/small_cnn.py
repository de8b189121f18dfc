"""The networks of the tables on MNIST."""

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .deform_resnet import checked, make_deformable


@MODELS.register_module()
class SmallCNN(BaseModule):
    """3×3 convolutions in a row, each with a ReLU and a BatchNorm.

    Args:
        channels: what each convolution returns.
        strides: of each; 1 by default.
        pool_after: numbers of convolutions, from 1, that a 2×2 max-pooling follows.
        norm_first: convolution, BatchNorm, ReLU, and no bias; else convolution, ReLU, BatchNorm.
        in_channels: of the image.
        deform: None, or a dict as `DeformResNet` takes it; each convolution is a stage.
        init_cfg: as of every mmengine module.

    Shapes: [N, in_channels, H, W] -> a tuple of the last feature map.

    Raises:
        ValueError: there are not as many strides as channels, `pool_after` names a convolution that
            is not there, or as in `DeformResNet`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int] | None = None,
        pool_after: Sequence[int] = (),
        norm_first: bool = True,
        in_channels: int = 1,
        deform: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        strides = [1] * len(channels) if strides is None else strides
        if len(strides) != len(channels):
            raise ValueError(f"strides: {len(strides)} of them, but {len(channels)} channels")
        if not set(pool_after) <= set(range(1, len(channels) + 1)):
            raise ValueError(
                f"pool_after: {pool_after}, but there are {len(channels)} convolutions"
            )
        self.pool_after = pool_after
        self.pool = nn.MaxPool2d(2)
        self.norm_first = norm_first
        inputs = [in_channels, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs[i], channels[i], 3, strides[i], 1, bias=not norm_first)
            for i in range(len(channels))
        )
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, channels))
        if deform is not None:
            convs = [(i, self.convs, str(i)) for i in range(len(channels))]
            make_deformable(convs, **checked(deform, len(convs)))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = norm(conv(x)).relu() if self.norm_first else norm(conv(x).relu())
            if i in self.pool_after:
                x = self.pool(x)
        return (x,)
