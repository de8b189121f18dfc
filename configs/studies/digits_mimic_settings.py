# How many RoIs, how large their crops, how much the losses weigh: one run of each, to see which
# way it goes.
title = "Digits among 6 fragments each: settings of feature mimicking"
base = "../digits/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_pretrained_digits-clutter-6.py"
rows = [
    dict(name="off", mimic="off"),
    dict(name="2 RoIs of 96, 0.1", mimic="foreground"),
    {"name": "8 RoIs", "model.mimic.num_rois": 8},
    {"name": "32 RoIs", "model.mimic.num_rois": 32},
    {"name": "crops of 64", "model.mimic.crop_size": 64},
    {"name": "crops of 160", "model.mimic.crop_size": 160},
    {
        "name": "losses × 0.01",
        "model.mimic.loss_mimic.loss_weight": 0.01,
        "model.mimic.loss_cls.loss_weight": 0.01,
    },
    {
        "name": "losses × 1",
        "model.mimic.loss_mimic.loss_weight": 1.0,
        "model.mimic.loss_cls.loss_weight": 1.0,
    },
]
seeds = [0]
options = {"train_cfg.max_epochs": 6, "train_cfg.val_interval": 1}
