"""What feature mimicking does to a trained detector, measured on annotated images."""

import copy
from collections import defaultdict
from collections.abc import Iterable

import pandas as pd
import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, set_random_seed
from torch import Tensor

from ..engine import load_weights
from ..engine.errors import EngineError
from .mimic import batch_statistics
from .mimic_two_stage import MimicTwoStageDetector, calls_of


def diagnose_checkpoint(cfg: Config, images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`diagnose` the weights in `cfg.load_from` on the first images of the config's val set.

    A config without mimicking is taken with the settings of `dict()`; other ones can be given as
    `model.mimic.KEY`. Where the weights have no auxiliary classifier, its accuracy and its loss are
    unknown. Seeds the global generators, so that the same weights are given the same RoIs.

    Raises:
        EngineError: the model is no `MimicTwoStageDetector`, the weights do not fit it, or the val
            set's pipeline loads no annotations.
    """
    init_default_scope("mmdet")
    set_random_seed(0)
    cfg = copy.deepcopy(cfg)
    cfg.model.mimic = cfg.model.get("mimic") or {}
    cfg.model.backbone.init_cfg = None
    if cfg.model.type != MimicTwoStageDetector.__name__:
        raise EngineError(f"model.type: expected MimicTwoStageDetector, got {cfg.model.type}")
    model = MODELS.build(cfg.model)
    weights = CheckpointLoader.load_checkpoint(cfg.load_from, "cpu")
    known = weights.get("state_dict", weights)
    mimicked = any(key.startswith("mimic.") for key in known)
    if not mimicked:
        own = {f"mimic.{key}": value for key, value in model.mimic.state_dict().items()}
        weights = {"state_dict": {**own, **known}}
    load_weights(model, weights, cfg.load_from, strict=True)
    model.to(get_device())
    dataset = cfg.val_dataloader.dataset
    steps = {step.type: step for step in dataset.pipeline}
    names = ("LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs")
    if missing := [name for name in names if name not in steps]:
        raise EngineError(f"val_dataloader.dataset.pipeline has no {missing[0]}")
    order = [steps[name] for name in names]  # boxes in the pixels of the resized image
    built = DATASETS.build(dict(dataset, pipeline=order, test_mode=False))
    batches = (pseudo_collate([built[i]]) for i in range(min(images, len(built))))
    classes, losses = diagnose(model, batches, built.metainfo["classes"])
    if not mimicked:
        classes["crop"] = losses.loc["loss_mimic_cls"] = float("nan")
    return classes, losses


def diagnose(
    model: MimicTwoStageDetector, batches: Iterable[dict], classes: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the detector with its R-CNN branch on the RoIs that training would mimic.

    BatchNorms normalise as in training, and no weight or statistic changes.

    Args:
        model: with `mimic`, on any device.
        batches: what a dataloader gives: images and annotations, with masks or without.
        classes: names of the classes.

    Returns:
        A table of classes (and one line, 'all', of all RoIs) and one of losses.

        Of classes: `rois`; `detector` and `crop`, accuracies of the detector's classifier and of
        the auxiliary one on the same RoIs, in percent; `cosine` of f_RCNN and f_FRCNN; `objects`
        and `inside`, the share of the sensitivity of the detector's score for an annotated object
        that lies within the object: of |∂ score / ∂ image|, summed over colours, the part on the
        object's mask, or in its box where there are no masks.

        Of losses: the detector's own (`detector`), `loss_mimic` and `loss_mimic_cls`: the norm of
        its gradient with respect to the backbone's parameters, and the `cosine` of that gradient
        with the detector's, means over the batches in which Ω is not empty.
    """
    rois: list[dict] = []
    objects: list[dict] = []
    gradients: dict[str, list[dict]] = defaultdict(list)
    for batch in batches:
        data = model.data_preprocessor(batch, training=True)
        model.train()
        with batch_statistics(model):
            found, losses = _mimicked(model, data)
        rois += found
        if found:
            for name, line in _gradients(model, losses).items():
                gradients[name].append(line)
        model.eval()
        for i, sample in enumerate(data["data_samples"]):
            objects += _sensitivity(model, data["inputs"][i : i + 1], sample)
    lines = pd.DataFrame(rois, columns=["label", "detector", "crop", "cosine"])
    inside = pd.DataFrame(objects, columns=["label", "inside"])
    by_class = [
        _summary(lines[lines.label == i], inside[inside.label == i]) for i in range(len(classes))
    ]
    table = pd.DataFrame([*by_class, _summary(lines, inside)], index=[*classes, "all"])
    means = {name: pd.DataFrame(each).mean() for name, each in gradients.items()}
    return table.rename_axis("class"), pd.DataFrame(means).T.rename_axis("loss")


def _summary(rois: pd.DataFrame, objects: pd.DataFrame) -> dict[str, float]:
    return {
        "rois": len(rois),
        "detector": 100 * rois["detector"].mean(),
        "crop": 100 * rois["crop"].mean(),
        "cosine": rois["cosine"].mean(),
        "objects": len(objects),
        "inside": objects["inside"].mean(),
    }


def _mimicked(model: MimicTwoStageDetector, data: dict) -> tuple[list[dict], dict]:
    """Of each RoI in Ω: its label, whether either classifier knows it, and the cosine."""
    with calls_of(model.mimic, "loss") as calls:
        losses = model.loss(data["inputs"], data["data_samples"])
    (call,) = calls
    f_rcnn, f_frcnn, labels = call["f_rcnn"], call["f_frcnn"], call["labels"]
    with torch.no_grad():
        own = model.box_head.fc_cls(f_frcnn).argmax(1) == labels
        crop = model.mimic.fc_cls(f_rcnn).argmax(1) == labels
        cosine = F.cosine_similarity(f_rcnn.float(), f_frcnn.float())
    lines = zip(labels.tolist(), own.tolist(), crop.tolist(), cosine.tolist(), strict=True)
    names = ("label", "detector", "crop", "cosine")
    return [dict(zip(names, line, strict=True)) for line in lines], losses


def _gradients(model: MimicTwoStageDetector, losses: dict) -> dict[str, dict[str, float]]:
    """Of the losses with respect to the backbone: norms, and cosines with the detector's."""
    parts = {name: losses[name] for name in ("loss_mimic", "loss_mimic_cls")}
    own = [v for k, v in losses.items() if "loss" in k and k not in parts]
    parts = {"detector": sum(sum(v) if isinstance(v, list) else v for v in own), **parts}
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    flat = {}
    for name, loss in parts.items():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat[name] = torch.cat([g.flatten() for g in found if g is not None]).double()
    detector = flat["detector"]
    return {
        name: {"norm": float(g.norm()), "cosine": float(F.cosine_similarity(g, detector, dim=0))}
        for name, g in flat.items()
    }


def _sensitivity(model: MimicTwoStageDetector, image: Tensor, sample: DetDataSample) -> list[dict]:
    """Of each annotated object of an image [1, 3, H, W]: the share that lies inside it."""
    objects = sample.gt_instances
    if not len(objects):
        return []
    image = image.detach().requires_grad_()
    rois = bbox2roi([objects.bboxes])
    scores = model.box_head.fc_cls(model.features_of(model.extract_feat(image), rois))
    height, width = image.shape[2:]
    lines = []
    for i, label in enumerate(objects.labels.tolist()):
        (gradient,) = torch.autograd.grad(scores[i, label], image, retain_graph=True)
        weight = gradient[0].abs().sum(0)
        inside = torch.zeros_like(weight, dtype=torch.bool)
        if "masks" in objects:
            mask = torch.from_numpy(objects.masks.to_ndarray()[i]).bool()
            inside[: mask.shape[0], : mask.shape[1]] = mask[:height, :width].to(inside.device)
        else:
            x1, y1, x2, y2 = objects.bboxes[i].tolist()
            inside[round(y1) : round(y2), round(x1) : round(x2)] = True
        lines.append({"label": label, "inside": float(weight[inside].sum() / weight.sum())})
    return lines
