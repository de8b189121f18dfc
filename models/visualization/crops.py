"""RoIs beside the crops that feature mimicking makes of them."""

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import resize
from torchvision.utils import draw_bounding_boxes, make_grid


def draw_crops(images: Tensor, rois: Tensor, crops: Tensor, normalisation: nn.Module) -> np.ndarray:
    """Pairs of an image with its RoI, and the crop of it, two in a row.

    Args:
        images: normalised, [N, 3, H, W].
        rois: [K, 5], (index of the image, x1, y1, x2, y2 in pixels).
        crops: normalised, [K, 3, size, size].
        normalisation: the data preprocessor that normalised them.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    size = crops.shape[2]
    pairs = []
    for roi, crop in zip(rois, crops, strict=True):
        image, crop = (_to_bytes(x, normalisation) for x in (images[int(roi[0])], crop))
        box = torch.stack([roi[1:3].floor(), roi[3:5].ceil()]).reshape(1, 4).cpu()
        width = max(1, round(size * image.shape[2] / image.shape[1]))
        scale = box.new_tensor([width / image.shape[2], size / image.shape[1]]).repeat(2)
        image = draw_bounding_boxes(
            resize(image, [size, width]), box * scale, colors="red", width=2
        )
        pairs.append(torch.cat([image, crop], 2))
    return make_grid(pairs, nrow=2, padding=4, pad_value=255).permute(1, 2, 0).contiguous().numpy()


def _to_bytes(image: Tensor, normalisation: nn.Module) -> Tensor:
    """A normalised image [3, H, W] as bytes, RGB."""
    image = image.detach().float()
    if getattr(normalisation, "_enable_normalize", False):
        image = image * normalisation.std + normalisation.mean
    if not getattr(normalisation, "_channel_conversion", False):
        image = image.flip(0)  # BGR, as it was read
    return image.round().clamp(0, 255).byte().cpu()
