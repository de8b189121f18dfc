"""The hook that logs what feature mimicking sees."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from ..visualization import draw_crops


@HOOKS.register_module()
class MimicPictureHook(Hook):
    """Once per epoch, shows RoIs in their images beside the crops that mimicking makes of them.

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
            picture = draw_crops(images, rois[some], crops[some], normalisation)
            runner.visualizer.add_image("mimic_crops", picture, step=runner.iter + 1)
            self._stop()

        self.handle = mimic.crop.register_forward_hook(show)

    def after_train_epoch(self, runner) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None
