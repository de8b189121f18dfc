# Feature mimicking on photographs, from ImageNet weights: playing cards, that lie side by side.
title = "Playing cards: feature mimicking"
base = "../cards/faster-rcnn_lite0-mdconv_fpn_mdpool_mimic_8e_cards.py"
rows = [
    dict(name="off", mimic="off"),
    dict(name="foreground", mimic="foreground"),
    dict(name="background", mimic="background"),
    dict(name="both", mimic="both"),
    dict(name="regular, off", layers=0, pool="align", mimic="off"),
    dict(name="regular, foreground", layers=0, pool="align", mimic="foreground"),
]
seeds = [0, 1, 2, 3, 4]
options = {
    "train_cfg.val_interval": 1,
    "train_dataloader.dataset.pipeline.2.scale": (256, 192),
    "val_dataloader.dataset.pipeline.1.scale": (256, 192),
    "test_dataloader.dataset.pipeline.1.scale": (256, 192),
}
