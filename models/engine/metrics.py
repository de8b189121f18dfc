"""Metrics of classification."""

from collections.abc import Sequence

from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric


@METRICS.register_module()
class Accuracy(BaseMetric):
    """The share of images whose right class is among the k of highest score, in percent.

    Reads `pred_scores` and `gt_label` of each sample. The metrics are `accuracy/top1` (and so on,
    by `topk`) over all images and, over those whose samples have it, `accuracy/GROUP/top1` for each
    `group`.

    Args:
        topk: each k.
        kwargs: all else that mmengine's BaseMetric takes.

    Raises:
        ValueError: a k is no positive integer, or there are fewer classes.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1,), **kwargs) -> None:
        super().__init__(**kwargs)
        listed = isinstance(topk, Sequence) and topk
        if not listed or not all(isinstance(k, int) and k > 0 for k in topk):
            raise ValueError(f"topk: expected integers from 1 up, got {topk!r}")
        self.topk = topk

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            scores = sample["pred_scores"]
            if max(self.topk) > len(scores):
                raise ValueError(f"topk: {max(self.topk)}, but there are {len(scores)} classes")
            best = scores.topk(max(self.topk)).indices.tolist()
            right = [sample["gt_label"] in best[:k] for k in self.topk]
            self.results.append((sample.get("group"), right))

    def compute_metrics(self, results: list) -> dict[str, float]:
        groups = dict.fromkeys(group for group, _ in results if group is not None)
        of_group = {f"{name}/": [r for group, r in results if group == name] for name in groups}
        return {
            f"{prefix}top{k}": 100 * sum(right) / len(right)
            for prefix, rows in {"": [r for _, r in results], **of_group}.items()
            for k, right in zip(self.topk, zip(*rows, strict=True), strict=True)
        }
