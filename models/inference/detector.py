"""A trained detector as one call."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import dcndet.data  # noqa: F401  (registers the loader of images)
import numpy as np
import torch
from dcndet.data.errors import DataError
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from PIL import Image
from torch import Tensor

from ..classifiers import ImageClassifier
from ..engine.checkpoint import load_weights
from ..engine.errors import EngineError
from ..engine.optim import amp_dtype, mixed_precision
from ..engine.options import read_config
from ..visualization import draw_boxes

Picture = str | Path | np.ndarray | Image.Image


@dataclass(eq=False)
class Detections:
    """What was found in one picture, best first.

    Attributes:
        boxes: float32 [N, 4] on the CPU, (x1, y1, x2, y2) in pixels of the picture.
        scores: float32 [N], in [0, 1].
        labels: int64 [N], indices into `classes`.
        classes: the names of all classes that the detector knows.
        image: the picture, uint8 [H, W, 3], BGR.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    image: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.classes[label] for label in self.labels.tolist()]

    def draw(self) -> Image.Image:
        """The picture with its boxes; a small one is enlarged, so that the labels can be read."""
        drawn = draw_boxes(
            np.ascontiguousarray(self.image[..., ::-1]),
            self.boxes,
            self.labels.tolist(),
            self.scores.tolist(),
            self.classes,
        )
        return Image.fromarray(drawn)

    def save(self, path: str | Path) -> None:
        """Write what `draw` gives; the file's suffix says in which format."""
        self.draw().save(path, quality=95)


class Detector:
    """A config and its weights, loaded once. No dataset is needed.

    Example:
        >>> detector = Detector("config.py", "checkpoint.pth")
        >>> result = detector("photo.jpg", score_thr=0.5)
        >>> result.boxes, result.scores, result.names
        >>> result.save("found.jpg")

    Args:
        config: path of an mmdet config, or the config itself.
        checkpoint: path or URL of the weights. They have to fit the model exactly; the auxiliary
            classifier of feature mimicking may be left over. Class names are the checkpoint's, or,
            if it has none, those of the config's test dataset.
        device: for example "cuda:1"; by default the GPU if there is one.
        amp: mixed precision: "bf16", "fp16", or "auto" (bf16 where the device has it).

    Attributes:
        classes: the names of all classes, by label.
        config: the config, as it was read.
        model: the network, in evaluation.

    Raises:
        EngineError: a file is missing, the checkpoint does not fit or is not safe to load, the
            device does not exist or lacks what `amp` asks for, or nothing says what the classes are
            called.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        amp: str | None = None,
    ) -> None:
        self._amp = None if amp is None else amp_dtype(amp)
        if not isinstance(config, Config):
            config = read_config(config)
        init_default_scope(config.get("default_scope", "mmdet"))
        self.config = config
        weights = CheckpointLoader.load_checkpoint(str(checkpoint), map_location="cpu")
        model = revert_sync_batchnorm(MODELS.build(config.model))
        load_weights(model, weights, str(checkpoint), strict=True)
        self.classes = class_names(config, weights)
        device = device or get_device()
        try:
            self.model = model.to(device, memory_format=torch.channels_last).eval()
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
            raise EngineError(f"device {device}: {str(error).splitlines()[0]}") from error
        self._use_pipeline(get_test_pipeline_cfg(config))

    def _use_pipeline(self, pipeline: Sequence[dict]) -> None:
        """A config's test pipeline, which begins by loading a file."""
        load, *transforms = pipeline
        if load["type"].endswith("LoadImageFromNDArray"):
            load = {**load, "type": "LoadImageFromFile"}
        self._begins = load["type"]  # where a set is in memory, with no loader
        if "Load" in self._begins:
            self._load = TRANSFORMS.build(load)
            self._transform = Compose([{**load, "type": "mmdet.LoadImageFromNDArray"}, *transforms])

    def read(self, path: str | Path) -> np.ndarray:
        """A picture as the detector sees it: uint8 [H, W, 3], BGR, upright.

        Raises:
            DataError: it cannot be read or decoded. (`dcndet.data.errors`, a ValueError.)
        """
        return self._load({"img_path": str(path)})["img"].astype(np.uint8)

    @torch.no_grad()
    def __call__(
        self,
        images: Picture | Sequence[Picture],
        score_thr: float = 0.3,
        classes: Sequence[str] | None = None,
        batch_size: int = 1,
    ) -> Detections | list[Detections]:
        """Detect objects in one picture or several.

        Args:
            images: a path, a uint8 array [H, W, 3] in **BGR** as OpenCV reads it, or a PIL image;
                or a list or tuple of these.
            score_thr: detections with a lower score are left out.
            classes: names of the classes to keep; all by default.
            batch_size: pictures that go through the model together, padded to the largest.

        Returns:
            `Detections` of one picture, or a list of them in the order of a list.

        Raises:
            DataError: a file cannot be read or decoded (see `read`).
            TypeError, ValueError: an array of another type or shape.
            EngineError: a name in `classes` is not one of the detector's, or it is a classifier.
        """
        if isinstance(self.model, ImageClassifier):
            raise EngineError("this config is a classifier's, which finds no boxes")
        if classes is not None:
            self.check_classes(classes)
        if not isinstance(images, (list, tuple)):
            return self._batch([images], score_thr, classes)[0]
        results: list[Detections] = []
        for start in range(0, len(images), batch_size):
            results += self._batch(images[start : start + batch_size], score_thr, classes)
        return results

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise EngineError unless the detector knows all of `names`."""
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise EngineError(
                f"unknown class {', '.join(unknown)}; the detector knows {', '.join(self.classes)}"
            )

    def prepare(self, pictures: Sequence[Picture]) -> tuple[list[np.ndarray], dict[str, list]]:
        """Pictures as arrays, uint8 [H, W, 3], BGR, and what `model.test_step` takes of them.

        Raises:
            DataError, TypeError, ValueError: as in a call, or a picture is too thin to be resized.
            EngineError: the config's test pipeline does not begin with a transform that loads.
        """
        if "Load" not in self._begins:
            raise EngineError(
                f"this config takes no pictures: its test pipeline begins with {self._begins}, "
                "which loads no image"
            )
        images = [self._array(picture) for picture in pictures]
        try:
            data = [self._transform({"img": image, "img_id": 0}) for image in images]
        except cv2.error as error:
            sizes = ", ".join(f"{image.shape[1]}×{image.shape[0]}" for image in images)
            raise DataError(f"a picture cannot be resized ({sizes} pixels)") from error
        return images, {key: [item[key] for item in data] for key in data[0]}

    def _batch(self, pictures, score_thr, classes) -> list[Detections]:
        images, batch = self.prepare(pictures)
        with nullcontext() if self._amp is None else mixed_precision(self.model, self._amp):
            samples = self.model.test_step(batch)
        results = []
        for image, sample in zip(images, samples, strict=True):
            found = sample.pred_instances.cpu()
            keep = found.scores >= score_thr
            if classes is not None:
                wanted = torch.tensor([name in classes for name in self.classes])
                keep &= wanted[found.labels]
            found = found[keep]
            found = found[found.scores.argsort(descending=True, stable=True)]
            results.append(
                Detections(
                    found.bboxes.float(), found.scores.float(), found.labels, self.classes, image
                )
            )
        return results

    def _array(self, picture: Picture) -> np.ndarray:
        if isinstance(picture, (str, Path)):
            return self.read(picture)
        if isinstance(picture, Image.Image):
            return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
        if not isinstance(picture, np.ndarray):
            raise TypeError(
                f"images: expected paths, arrays or PIL images, got {type(picture).__name__}"
            )
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"images: expected uint8 arrays [H, W, 3], got {picture.dtype} "
                f"{list(picture.shape)}"
            )
        return picture


def class_names(config: Config, checkpoint: dict[str, Any] | None = None) -> tuple[str, ...]:
    """Those of a checkpoint, or, if it has none, of the config's test dataset.

    Raises:
        EngineError: neither has any.
    """
    checkpoint = checkpoint or {}
    meta = {k.lower(): v for k, v in checkpoint.get("meta", {}).get("dataset_meta", {}).items()}
    dataset = config.get("test_dataloader", {}).get("dataset", {})
    of_type = getattr(DATASETS.get(dataset.get("type", "")), "METAINFO", {})
    for source in (meta, dataset.get("metainfo", {}), of_type):
        if "classes" in source:
            return tuple(source["classes"])
    raise EngineError("neither the checkpoint nor the config's test dataset has class names")
