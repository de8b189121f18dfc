# The form of the paper's table of feature mimicking: what is mimicked, and on which network.
title = "COCO: feature mimicking"
base = "../dcnv2/faster-rcnn_r50_fpn_mdconv-c3-c5_mdpool_mimic_1x_coco.py"
rows = [
    dict(name="mdconv c3-c5 + mdpool", mimic="off"),
    dict(name="mdconv c3-c5 + mdpool, mimic both", mimic="both"),
    dict(name="mdconv c3-c5 + mdpool, mimic background", mimic="background"),
    dict(name="mdconv c3-c5 + mdpool, mimic foreground", mimic="foreground"),
    dict(name="regular", layers=0, pool="align", mimic="off"),
    dict(name="regular, mimic foreground", layers=0, pool="align", mimic="foreground"),
]
seeds = [0, 1, 2]
