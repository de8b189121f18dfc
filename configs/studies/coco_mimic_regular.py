# Of the paper's table of feature mimicking: what it does for the regular network.
title = "COCO: feature mimicking on the regular network"
base = "../dcnv2/faster-rcnn_r50_fpn_mimic_1x_coco.py"
axes = dict(mimic=["off", "foreground"])
seeds = [0, 1, 2]
