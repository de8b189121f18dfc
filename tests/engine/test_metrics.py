from types import SimpleNamespace

import pytest
import torch
from dcndet.models.engine import Accuracy, EngineError
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement


def sample(label, scores, **meta):
    found = BaseDataElement(metainfo=dict(gt_label=label, **meta))
    found.pred_scores = torch.tensor(scores)
    return found


SCORES = [0.2, 0.5, 0.3]  # best: 1, 2, 0


def test_accuracy():
    evaluator = Evaluator(Accuracy(topk=(1, 2)))
    evaluator.process([sample(1, SCORES, group="zoomed"), sample(2, SCORES, group="regular")])
    evaluator.process([sample(0, SCORES, group="regular"), sample(1, SCORES)])  # another batch
    assert evaluator.evaluate(4) == {
        "accuracy/top1": 50.0,
        "accuracy/top2": 75.0,
        "accuracy/zoomed/top1": 100.0,
        "accuracy/zoomed/top2": 100.0,
        "accuracy/regular/top1": 0.0,
        "accuracy/regular/top2": 50.0,
    }


@pytest.mark.parametrize("topk", [(), (0,), (1.0,), (True,), 5])
def test_bad_topk(topk):
    with pytest.raises(ValueError, match="topk: expected integers from 1 up"):
        Accuracy(topk=topk)


def test_more_than_there_are_classes():
    dataset = SimpleNamespace(metainfo=dict(classes=("a", "b", "c")))
    Accuracy(topk=(3,)).check_dataset(dataset)
    with pytest.raises(EngineError, match="topk: 5, but there are 3 classes"):
        Accuracy(topk=(1, 5)).check_dataset(dataset)


def test_equal_scores_and_scores_that_are_no_numbers():
    evaluator = Evaluator(Accuracy(topk=(1, 2)))
    evaluator.process([sample(label, [0.1] * 4) for label in range(4)])
    assert evaluator.evaluate(4) == {"accuracy/top1": 25.0, "accuracy/top2": 50.0}
    evaluator.process([sample(label, [float("nan")] * 2) for label in range(2)])
    evaluator.process([sample(0, [0.9, float("nan")])])
    assert evaluator.evaluate(3) == {"accuracy/top1": 0.0, "accuracy/top2": 0.0}
