"""Pictures of what feature mimicking sees."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor
from torchvision.transforms.functional import resize
from torchvision.utils import draw_bounding_boxes, make_grid


@HOOKS.register_module()
class MimicPictureHook(Hook):
    """Shows, once an epoch, RoIs in their images beside the crops that mimicking makes of them.

    They go to TensorBoard and to the run's `vis_data` as `mimic_crops`. The Runner of this
    repository has it on; without mimicking it does nothing.

    Args:
        num_rois: at most, of the epoch's first batch that has any.
    """

    priority = "LOW"

    def __init__(self, num_rois: int = 8) -> None:
        self.num_rois = num_rois
        self.handle = None

    def before_train_epoch(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        mimic = getattr(model, "mimic", None)
        if mimic is None:
            return
        normalisation = model.data_preprocessor

        def show(module, args, crops: Tensor) -> None:
            images, rois, _ = args
            some = torch.linspace(0, len(rois) - 1, min(len(rois), self.num_rois)).long()
            picture = draw(images, rois[some], crops[some], normalisation)
            runner.visualizer.add_image("mimic_crops", picture, step=runner.iter + 1)
            self._stop()

        self.handle = mimic.crop.register_forward_hook(show)

    def after_train_epoch(self, runner) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


def draw(images: Tensor, rois: Tensor, crops: Tensor, normalisation):
    """Normalised images [N, 3, H, W], RoIs [K, 5] and crops [K, 3, size, size]
    -> uint8 array [height, width, 3], RGB.
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


def _to_bytes(image: Tensor, normalisation) -> Tensor:
    """A normalised image [3, H, W] as bytes, RGB."""
    image = image.detach().float()
    if getattr(normalisation, "_enable_normalize", False):
        image = image * normalisation.std + normalisation.mean
    if not getattr(normalisation, "_channel_conversion", False):
        image = image.flip(0)  # BGR, as it was read
    return image.round().clamp(0, 255).byte().cpu()
