"""What tools/diagnose_mimic.py measures, against a count by hand."""

import pandas as pd
import pytest
import torch
from dcndet.models.detectors import diagnosis
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from tests.models.test_mimic import FULL, batch, build

CLASSES = tuple("0123456789")


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


@pytest.fixture
def model(monkeypatch):
    model = build(FULL)
    # The batch is prepared already.
    monkeypatch.setattr(model.data_preprocessor, "forward", lambda data, training: data)
    return model


def test_accuracies_cosines_and_gradients(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = batch_of(model)
    with diagnosis.calls_of(model.mimic, "loss") as calls:
        classes, losses = diagnosis.diagnose(model, [data, data], CLASSES)
    assert len(calls) == 2
    seen = [(c["f_rcnn"], c["f_frcnn"], c["labels"]) for c in calls]
    f_rcnn, f_frcnn, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    cosine = (f_rcnn * f_frcnn).sum(1) / f_rcnn.norm(dim=1) / f_frcnn.norm(dim=1)
    own = model.roi_head.bbox_head.fc_cls(f_frcnn).argmax(1) == labels
    crop = model.mimic.fc_cls(f_rcnn).argmax(1) == labels
    for name, chosen in [(str(i), labels == i) for i in range(10)] + [("all", labels >= 0)]:
        line = classes.loc[name]
        assert line["rois"] == chosen.sum()
        if chosen.any():
            assert line["detector"] == pytest.approx(100 * own[chosen].float().mean().item())
            assert line["crop"] == pytest.approx(100 * crop[chosen].float().mean().item())
            assert line["cosine"] == pytest.approx(cosine[chosen].mean().item(), rel=1e-4)
    assert list(losses.index) == ["detector", "loss_mimic", "loss_mimic_cls"]
    assert losses.loc["detector", "cosine"] == pytest.approx(1)
    assert (losses["norm"] > 0).all()
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_gradients_are_those_of_the_losses(model, monkeypatch):
    """Those of a loss that is three times as large are three times as long."""
    data = batch_of(model)
    norms = []
    for weight in (0.1, 0.3):
        model.mimic.loss_mimic.loss_weight = weight
        torch.manual_seed(0)
        norms.append(diagnosis.diagnose(model, [data], CLASSES)[1]["norm"])
    ratio = pd.concat(norms, axis=1).pipe(lambda t: t.iloc[:, 1] / t.iloc[:, 0])
    assert ratio["loss_mimic"] == pytest.approx(3, rel=1e-3)
    assert ratio["detector"] == pytest.approx(1, rel=1e-3)


def test_sensitivity_is_the_gradients_share_inside_the_object(model, monkeypatch):
    """Of a score that is a sum of pixels, each weighted by its column."""
    model.eval()
    data = batch_of(model)
    image, sample = data["inputs"][:1], data["data_samples"][0]
    columns = torch.arange(image.shape[3], dtype=torch.float32)
    score = torch.zeros(1, 11)

    def features(maps, rois):
        return (maps[0] * columns).sum() + score.expand(len(rois), -1)

    monkeypatch.setattr(model, "extract_feat", lambda image: (image,))
    monkeypatch.setattr(model, "features_of", features)
    monkeypatch.setattr(model.roi_head.bbox_head, "fc_cls", torch.nn.Identity())
    box = torch.tensor([[32.0, 0, 64, 48]])
    sample.gt_instances = InstanceData(bboxes=box, labels=torch.tensor([3]))
    (line,) = diagnosis._sensitivity(model, image, sample)
    height = image.shape[2]
    expected = 48 * columns[32:64].sum() / (height * columns.sum())
    assert line == {"label": 3, "inside": pytest.approx(expected.item(), rel=1e-4)}


def batch_of(model):
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(model.data_preprocessor, "forward", raising=False)
        return batch(model)
