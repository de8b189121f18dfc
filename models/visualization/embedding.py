"""The features by which a network classifies objects, in two dimensions (as arXiv 1910.02940)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import BaseDataset, pseudo_collate
from sklearn.manifold import TSNE
from torch import Tensor, nn
from tqdm import trange

from ..classifiers import ImageClassifier
from ..engine.errors import EngineError
from .annotated import annotations_of
from .boxes import colour
from .figures import DPI, rendered, style
from .views import view_of

if TYPE_CHECKING:
    from ..inference.detector import Detector

NAMED = 20  # classes in a legend


@dataclass(frozen=True, eq=False)
class Embedding:
    """n objects.

    Attributes:
        xy: float32 [n, 2], by t-SNE.
        features: float32 [n, C], what the classifier sees of each.
        labels: int64 [n], indices into `classes`.
        sizes: float32 [n], roots of the areas of their boxes, in pixels of the image; an object of
            a classifier is its image, as large as the pipeline has made it (``scale_factor``).
        images: n paths.
        classes: names.
    """

    xy: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    images: tuple[str, ...]
    classes: tuple[str, ...]


@torch.no_grad()
def embedding(
    detector: "Detector", dataset: BaseDataset, images: int | None = None, seed: int = 0
) -> Embedding:
    """t-SNE of the last features of annotated objects.

    Of a detector, features are what the box head's classifier sees of each annotated box; of an
    `ImageClassifier`, the pooled ones of each image. Perplexity is 30, or a third of the number of
    objects where they are fewer than 91; t-SNE starts from the principal components.

    Args:
        detector: or a classifier, loaded as one.
        dataset: annotated images, see `validation_set`.
        images: the first so many; by default all.
        seed: of t-SNE.

    Raises:
        DataError: an image cannot be read.
        EngineError: the model is neither, or there are fewer than four objects.
    """
    features, labels, sizes, paths = [], [], [], []
    for i in trange(min(images or len(dataset), len(dataset)), unit="image", disable=None):
        info = dataset.get_data_info(i)
        if "instances" in info:
            objects = annotations_of(info)
            if not objects:
                continue
            boxes = np.array([each.box for each in objects], np.float32)
            features.append(_of_boxes(detector, info["img_path"], boxes))
            labels += [each.label for each in objects]
        else:
            found, (height, width) = _of_image(detector.model, dataset[i])
            features.append(found)
            boxes = np.array([[0, 0, width, height]], np.float32)
            labels.append(info["gt_label"])
        sizes.append(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)))
        paths += [info.get("img_path", str(i))] * len(boxes)
    if len(labels) < 4:
        raise EngineError(f"an embedding needs at least four objects, and there are {len(labels)}")
    stacked = torch.cat(features).float().cpu().numpy()
    perplexity = min(30, (len(stacked) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return Embedding(
        tsne.fit_transform(stacked),
        stacked,
        np.array(labels),
        np.concatenate(sizes),
        tuple(paths),
        detector.classes,
    )


def _of_boxes(detector: "Detector", image: str, boxes: np.ndarray) -> Tensor:
    """What the box head's classifier sees of boxes [n, 4] of the image: [n, C]."""
    model = detector.model
    if not hasattr(model, "features_of"):
        raise _unknown(model)
    view = view_of(detector, image)
    rois = torch.zeros(len(boxes), 5)
    rois[:, 1:] = torch.from_numpy(boxes * np.float32(view.scale * 2))
    return model.features_of(model.extract_feat(view.inputs), rois.to(view.inputs.device))


def _of_image(model: nn.Module, sample: dict) -> tuple[Tensor, tuple[int, int]]:
    """What a classifier's linear layer sees of a sample [1, C], and the image's (height, width)."""
    if not isinstance(model, ImageClassifier):
        raise _unknown(model)
    inputs = model.data_preprocessor(pseudo_collate([sample]), False)["inputs"]
    known = sample["data_samples"]
    height, width = known.get("ori_shape", sample["inputs"].shape[1:])
    across, down = known.get("scale_factor", (1, 1))
    return model.extract_feat(inputs), (height * down, width * across)


def _unknown(model: nn.Module) -> EngineError:
    return EngineError(
        "model.type: expected a MimicTwoStageDetector (with mimic or without) and annotated boxes, "
        f"or an ImageClassifier and labelled images, got a {type(model).__name__}"
    )


def draw_embedding(embedded: Embedding) -> np.ndarray:
    """The objects, coloured by class on the left and by size on the right.

    Of many classes, the legend names the twenty most frequent.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    x, y = embedded.xy.T
    count = len(embedded.classes)
    present, frequency = np.unique(embedded.labels, return_counts=True)
    named = np.sort(present[frequency.argsort(kind="stable")[::-1][:NAMED]])
    with style():
        figure = Figure((7.2, 3.3), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.06))
        marks = dict(s=12, edgecolors="black", linewidths=0.2)
        for label in present:
            of = embedded.labels == label
            own = np.array(colour(label, count)) / 255
            name = embedded.classes[label] if label in named else None
            left.scatter(x[of], y[of], color=[own], label=name, **marks)
        columns = 1 if len(named) <= 10 else 2
        figure.legend(loc="outside left center", frameon=False, ncols=columns, handletextpad=0.1)
        drawn = right.scatter(x, y, c=embedded.sizes, cmap="viridis", **marks)
        figure.colorbar(drawn, ax=right, label="√(width · height) [pixels]")
        for axis, title in ((left, "by class"), (right, "by size")):
            axis.set(xticks=[], yticks=[], title=title)
        return rendered(figure)
