"""Metrics of classification."""

from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric


@METRICS.register_module()
class Accuracy(BaseMetric):
    """The share of images whose best class is the right one: ``accuracy/top1``, in percent.

    Reads ``pred_label`` and ``gt_label`` of each sample.
    """

    default_prefix = "accuracy"

    def process(self, data_batch, data_samples):
        self.results += [sample["pred_label"] == sample["gt_label"] for sample in data_samples]

    def compute_metrics(self, results):
        return {"top1": 100 * sum(results) / len(results)}
