import dcndet.data
import pytest
from dcndet.models.engine import EngineError, check_options, merge_options
from dcndet.models.engine.options import read_config
from mmengine.config import Config

assert dcndet.data  # registers the dataset
WHOLE = "configs/quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"
PLAIN = "configs/dcnv2/faster-rcnn_r50_fpn_1x_coco.py"


@pytest.fixture(params=[WHOLE, PLAIN], scope="module")
def config(request):
    return Config.fromfile(request.config.rootpath / request.param)


@pytest.mark.parametrize(
    "key",
    [
        "channels_last",
        "load_from",
        "train_cfg.max_epochs",
        "train_dataloader.dataset.indices",  # of the dataset's base class
        "train_dataloader.dataset.pipeline.2.scale",
        "train_dataloader.persistent_workers",
        "default_hooks.checkpoint.save_best",
        "optim_wrapper.accumulative_counts",
        "optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult",
        "optim_wrapper.optimizer.maximize",
        "param_scheduler.1.end",
        "model.backbone.with_cp",
        "model.backbone.deform.layers",
        "model.roi_head.bbox_roi_extractor.deform.shared_fc",
        "model.mimic.num_rois",
        "model.mimic.loss_cls.loss_weight",
        "env_cfg.dist_cfg.backend",
    ],
)
def test_what_something_reads_is_taken(key, config):
    check_options(config, {key: 1})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim_wraper.optimizer.lr", "optim_wrapper.optimizer.lr"),
        ("optim_wrapper.optimizer.lrr", "optim_wrapper.optimizer.lr"),
        ("optimizer.lr", "optim_wrapper.optimizer.lr"),
        ("max_epochs", "train_cfg.max_epochs"),
        ("model.backbone.deform.layer", "model.backbone.deform.layers"),
        ("model.mimic.num_roi", "model.mimic.num_rois"),
        ("model.roi_head.bbox_head.num_clases", "model.roi_head.bbox_head.num_classes"),
        ("train_dataloader.batchsize", "train_dataloader.batch_size"),
        ("val_evaluator.metrics", "val_evaluator.metric"),
        ("param_scheduler.7.end", "param_scheduler is a list of 2"),
    ],
)
def test_what_nothing_reads_is_refused_with_the_nearest(key, nearest, config):
    with pytest.raises(EngineError, match=f"^here: .*{key}.*{nearest}"):
        check_options(config, {key: 1}, "here")


def test_options_hold_together():
    config = Config(dict(model=dict(type="FasterRCNN"), optim_wrapper=dict(type="OptimWrapper")))
    check_options(config, {"model.type": "MimicTwoStageDetector", "model.mimic.crop_size": 64})
    with pytest.raises(EngineError, match=r"no key model\.mimic\.crop_size"):
        check_options(config, {"model.mimic.crop_size": 64})


def test_a_dict_goes_where_none_was():
    config = Config(dict(model=dict(backbone=dict(type="DeformResNet", deform=None, depth=18))))
    merge_options(config, {"model.backbone.deform.layers": 9})
    assert config.model.backbone.deform == dict(layers=9)
    merge_options(config, {"model.backbone.deform.modulated": False, "model.backbone.depth": 50})
    assert config.model.backbone == dict(
        type="DeformResNet", depth=50, deform=dict(layers=9, modulated=False)
    )


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    for name, message in (("none.py", "config not found"), ("notes.md", "cannot read config")):
        path = tmp_path / name
        if name == "notes.md":
            path.write_text("# Notes\n")
        with pytest.raises(EngineError, match=f"{message}.*{name}"):
            read_config(path)
