import numpy as np
import pytest
import torch
from dcndet.models.classifiers import ImageClassifier
from dcndet.models.engine import EngineError
from dcndet.models.visualization import draw_embedding, embedding
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from torch import nn

from tests.visualization.toy import toy


class Dataset(list):
    def get_data_info(self, index):
        return self[index]


def images(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (32, 48, 3)).astype(np.uint8) for _ in range(count)]


def test_of_a_classifier_it_shows_pooled_features():
    init_default_scope("mmdet")
    backbone = dict(type="DeformResNet", depth=18, base_channels=4)
    detector = toy(nn.Identity())
    own = detector.model.data_preprocessor
    torch.manual_seed(0)
    detector.model = ImageClassifier(backbone, 32, 2).eval()
    detector.model.data_preprocessor = own
    inputs = torch.from_numpy(np.stack(images(9))).permute(0, 3, 1, 2)
    scaled = dict(ori_shape=(10, 20), scale_factor=(0.5, 2))
    dataset = Dataset(
        dict(inputs=image, data_samples=DetDataSample(metainfo=meta), gt_label=i % 2)
        for i, (image, meta) in enumerate(zip(inputs, [{}] * 7 + [scaled] * 2, strict=True))
    )
    found = embedding(detector, dataset, images=8)
    assert found.labels.tolist() == [0, 1] * 4
    assert found.xy.shape == (8, 2)
    np.testing.assert_allclose(found.sizes, [(32 * 48) ** 0.5] * 7 + [(20 * 10) ** 0.5], rtol=1e-6)
    with torch.no_grad():
        expected = detector.model.head(torch.from_numpy(found.features))
        torch.testing.assert_close(
            detector.model(inputs[:8].float()), expected, rtol=1e-3, atol=1e-4
        )
    np.testing.assert_array_equal(embedding(detector, dataset, images=8).xy, found.xy)
    assert draw_embedding(found).dtype == np.uint8
    with pytest.raises(EngineError, match="at least four objects, and there are 3"):
        embedding(detector, dataset, images=3)


def test_of_a_detector_it_shows_what_its_classifier_sees_of_the_boxes():
    """Boxes are in pixels of the image, RoIs in those of the input."""
    detector = toy(nn.Identity(), scale=(2, 3))
    seen = []
    detector.model.extract_feat = lambda inputs: inputs
    detector.model.features_of = lambda maps, rois: seen.append(rois) or rois @ torch.ones(5, 6)
    boxes = [[1, 2, 5, 18], [4, 4, 8, 8]]
    instances = [dict(bbox=box, bbox_label=1) for box in boxes]
    dataset = Dataset(
        dict(img_path=a, height=32, width=48, instances=instances if i else [])
        for i, a in enumerate(images(3))
    )
    found = embedding(detector, dataset)
    assert seen[0].tolist() == [[0, 2, 6, 10, 54], [0, 8, 12, 16, 24]]
    assert found.features[:, 0].tolist() == [72, 60] * 2
    assert found.sizes.tolist() == [8, 4] * 2
    assert len(found.images) == 4


def test_other_models_are_refused():
    dataset = Dataset([dict(img_path=images(1)[0], gt_label=0)])
    with pytest.raises(EngineError, match=r"expected a MimicTwoStageDetector .* got a Toy"):
        embedding(toy(nn.Identity()), dataset)
