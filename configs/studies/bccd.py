# What each part of DCNv2 is worth on blood cells: two epochs on images of 240×180, so that all
# of it takes half an hour on two cores.
title = "BCCD: the parts of DCNv2"
base = "../bccd/faster-rcnn_r18-mdconv-c3-c5_fpn_mdpool_mimic_6e_bccd.py"
rows = [
    dict(name="regular", layers=0, pool="align", mimic="off"),
    dict(name="mdconv", layers=12, pool="align", mimic="off"),
    dict(name="mdconv + mdpool", layers=12, pool="mdpool", mimic="off"),
    dict(name="mdconv + mdpool + mimic", layers=12, pool="mdpool", mimic="foreground"),
]
seeds = [0, 1, 2]
options = {
    "train_cfg.max_epochs": 2,
    "train_cfg.val_interval": 2,
    "train_dataloader.dataset.pipeline.2.scale": (240, 180),
    "val_dataloader.dataset.pipeline.1.scale": (240, 180),
    "test_dataloader.dataset.pipeline.1.scale": (240, 180),
}
