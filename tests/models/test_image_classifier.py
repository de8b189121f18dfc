from pathlib import Path

import pytest
import torch
from dcndet.data.digits import make_crops
from dcndet.models.classifiers import ImageClassifier
from dcndet.models.engine import EngineError, Runner
from dcndet.models.engine.evaluation import evaluate
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement

CONFIGS = Path(__file__).parents[2] / "configs"
CROPS = CONFIGS / "digits/resnet18_digit-crops.py"
REGULAR = CONFIGS / "digits/faster-rcnn_r18_fpn_pretrained_digits-clutter-2.py"
WHOLE = CONFIGS / "digits/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_pretrained_digits-clutter-6.py"
BACKBONE = dict(type="DeformResNet", depth=18, base_channels=4)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def classifier(**settings):
    return ImageClassifier(
        **dict(dict(backbone=BACKBONE, in_channels=32, num_classes=3), **settings)
    )


def samples(labels):
    return [BaseDataElement(metainfo=dict(gt_label=label)) for label in labels]


def test_modes():
    torch.manual_seed(0)
    model = classifier().eval()
    images = torch.randn(4, 3, 40, 48)
    logits = model(images)
    assert logits.shape == (4, 3)
    pooled = torch.nn.functional.adaptive_avg_pool2d(model.backbone(images)[-1], 1).flatten(1)
    torch.testing.assert_close(model.extract_feat(images), pooled)
    torch.testing.assert_close(logits, model.head(pooled))

    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % 3
    losses = model(images, samples(labels.tolist()), "loss")
    expected = -logits.log_softmax(1)[range(4), labels].mean()
    torch.testing.assert_close(losses["loss_cls"], expected)
    assert losses["acc"] == 75

    found = model(images, samples([0] * 4), "predict")
    assert [sample.pred_label for sample in found] == logits.argmax(1).tolist()
    torch.testing.assert_close(
        torch.stack([sample.pred_scores for sample in found]), logits.softmax(1)
    )
    with pytest.raises(ValueError, match=r"mode: .* 'train'"):
        model(images, mode="train")


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_classes", 1), ("num_classes", 2.0), ("in_channels", 0), ("in_channels", "32")],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer from . up, got {value!r}"):
        classifier(**{name: value})


def test_channels_of_another_backbone():
    with pytest.raises(ValueError, match="in_channels: 64, but the backbone's last map has 32"):
        classifier(in_channels=64)(torch.zeros(2, 3, 32, 32))


def training(root, work_dir, **options):
    config = Config.fromfile(CROPS)
    config.work_dir = str(work_dir)
    config.merge_from_dict(
        {
            "train_cfg.max_epochs": 1,
            "optim_wrapper.optimizer.lr": 1e-3,
            "visualizer.vis_backends": [],
            **{
                f"{split}_dataloader": {
                    "num_workers": 0,
                    "batch_size": 10,
                    "dataset": {"data_root": str(root)},
                }
                for split in ("train", "val", "test")
            },
            **options,
        }
    )
    return config


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "crops"
    make_crops(root, num_train=80, num_val=40)
    return root


@pytest.fixture(scope="module")
def checkpoint(crops, tmp_path_factory):
    """What the command writes after an epoch."""
    work_dir = tmp_path_factory.mktemp("classifier")
    best = {"default_hooks.checkpoint.save_best": "auto"}
    runner = Runner.from_cfg(training(crops, work_dir, **best))
    runner.train()
    assert 0 <= runner.message_hub.get_scalar("val/accuracy/top1").current() <= 100
    assert (work_dir / "best_accuracy_top1_epoch_1.pth").is_file()
    return work_dir / "epoch_1.pth"


@pytest.mark.parametrize("file", [REGULAR, WHOLE])
def test_a_detector_starts_from_its_backbone(checkpoint, file):
    config = Config.fromfile(file)
    assert Path(config.model.backbone.init_cfg.checkpoint).parent == Path(
        "work_dirs", CROPS.relative_to(CONFIGS).with_suffix("")
    )
    config.model.backbone.init_cfg.checkpoint = str(checkpoint)
    detector = MODELS.build(config.model)
    detector.init_weights()
    own = detector.backbone.state_dict()
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    given = {
        key.removeprefix("backbone."): value
        for key, value in weights.items()
        if key.startswith("backbone.")
    }
    assert len(given) == len(weights) - 2  # all but the linear layer
    for key, value in given.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=0)
    new = own.keys() - given.keys()
    assert len(new) == (24 if file == WHOLE else 0)
    assert all("conv_offset" in key for key in new)


def test_its_checkpoint_is_evaluated_and_resumed(crops, checkpoint, tmp_path):
    config = training(crops, tmp_path, load_from=str(checkpoint))
    assert 0 <= Runner.from_cfg(config).test()["accuracy/top1"] <= 100
    config = training(crops, tmp_path, load_from=str(checkpoint), resume=True)
    config.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 16


def test_pictures_of_it_are_refused(crops, checkpoint, tmp_path):
    config = training(crops, tmp_path, load_from=str(checkpoint))
    with pytest.raises(EngineError, match=r"--show-dir: .* is a classifier"):
        evaluate(config, show_dir=tmp_path / "pictures")


def test_another_number_of_classes_is_refused(crops, tmp_path):
    config = training(crops, tmp_path, **{"model.num_classes": 9})
    with pytest.raises(EngineError, match=r"model\.num_classes is 9, but the training data has 10"):
        Runner.from_cfg(config).train()


def test_backbone_is_that_of_the_quickstart():
    quickstart = Config.fromfile(CONFIGS / "quickstart/faster-rcnn_r18_fpn_digits.py")
    ours, theirs = (
        MODELS.build(config.model.backbone) for config in (Config.fromfile(CROPS), quickstart)
    )
    assert str(ours) == str(theirs)
    assert (ours.norm_eval, ours.frozen_stages) == (theirs.norm_eval, theirs.frozen_stages)
