from dcndet.models.engine import Accuracy
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement


def test_accuracy():
    evaluator = Evaluator(Accuracy())
    for labels in ([0, 1, 2], [2]):  # two batches
        samples = [BaseDataElement(metainfo=dict(gt_label=label)) for label in labels]
        for sample in samples:
            sample.pred_label = 2
        evaluator.process(samples)
    assert evaluator.evaluate(4) == {"accuracy/top1": 50.0}
