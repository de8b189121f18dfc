# The last rows of the paper's Table 3: mimicking on the regular network.
title = "COCO: feature mimicking on the regular network"
base = "../dcnv2/faster-rcnn_r50_dc5_mimic_16e-1000px_coco.py"
axes = dict(mimic=["off", "foreground"])
seeds = [0, 1, 2]
