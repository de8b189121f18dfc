# The paper on deformable kernels says that they and deformable convolutions complement each other:
# in place of six depthwise convolutions of an EfficientNet-Lite0, from ImageNet weights. Each layer
# starts as the convolution that it replaces: modulated ones therefore with masks of 1.
title = "Playing cards: the family"
base = "../cards/faster-rcnn_lite0_fpn_8e_cards.py"
rows = [dict(layers=0)]
rows += [dict(layers=6, conv=conv) for conv in ("dconv", "dk_local", "dk_dconv", "condconv")]
rows += [
    {
        "name": "6 layers, mdconv",
        "layers": 6,
        "conv": "mdconv",
        "model.backbone.deform.mask_scale": 2.0,
    }
]
pairs = [("6 layers, dk_dconv", f"6 layers, {alone}") for alone in ("dconv", "dk_local")]
seeds = [0, 1, 2]
options = {
    "train_cfg.val_interval": 8,
    "train_dataloader.dataset.pipeline.2.scale": (256, 192),
    "val_dataloader.dataset.pipeline.1.scale": (256, 192),
    "test_dataloader.dataset.pipeline.1.scale": (256, 192),
}
