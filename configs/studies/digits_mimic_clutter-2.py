# What feature mimicking is worth where context misleads: 2 fragments of other digits around each
# one on average, from weights that know single digits.
title = "Digits among 2 fragments each: feature mimicking"
base = "../digits/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_pretrained_digits-clutter-2.py"
rows = [
    dict(name="off", mimic="off"),
    dict(name="foreground", mimic="foreground"),
    dict(name="background", mimic="background"),
    dict(name="both", mimic="both"),
    dict(name="regular, off", layers=0, pool="align", mimic="off"),
    dict(name="regular, foreground", layers=0, pool="align", mimic="foreground"),
]
seeds = [0, 1, 2, 3, 4]
options = {"train_cfg.max_epochs": 6, "train_cfg.val_interval": 1}
