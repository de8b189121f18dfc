"""Metrics of classification."""

from collections.abc import Sequence

from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric

from .errors import EngineError


@METRICS.register_module()
class Accuracy(BaseMetric):
    """The share of images whose right class is among the k of highest score, in percent.

    Of equal scores the class that is first comes first. Scores that are not numbers are wrong.

    Reads `pred_scores` and `gt_label` of each sample. The metrics are `accuracy/top1` (and so on,
    by `topk`) over all images and, over those whose samples have it, `accuracy/GROUP/top1` for each
    `group`.

    Args:
        topk: each k.
        kwargs: all else that mmengine's BaseMetric takes.

    Raises:
        ValueError: a k is no positive integer.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1,), **kwargs) -> None:
        super().__init__(**kwargs)
        listed = isinstance(topk, Sequence) and topk
        if not listed or not all(type(k) is int and k > 0 for k in topk):
            raise ValueError(f"topk: expected integers from 1 up, got {topk!r}")
        self.topk = topk

    def check_dataset(self, dataset) -> None:
        """Raise EngineError if there are fewer classes than a k: asked before training."""
        classes = dataset.metainfo["classes"]
        if max(self.topk) > len(classes):
            raise EngineError(f"topk: {max(self.topk)}, but there are {len(classes)} classes")

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            scores, label = sample["pred_scores"], sample["gt_label"]
            ahead = (scores > scores[label]).sum() + (scores[:label] == scores[label]).sum()
            known = not scores.isnan().any()
            right = [known and int(ahead) < k for k in self.topk]
            self.results.append((sample.get("group"), right))

    def compute_metrics(self, results: list) -> dict[str, float]:
        groups = dict.fromkeys(group for group, _ in results if group is not None)
        of_group = {f"{name}/": [r for group, r in results if group == name] for name in groups}
        return {
            f"{prefix}top{k}": 100 * sum(right) / len(right)
            for prefix, rows in {"": [r for _, r in results], **of_group}.items()
            for k, right in zip(self.topk, zip(*rows, strict=True), strict=True)
        }
