# What R-CNN feature mimicking looks at, on the warped digits of the quickstart.
title = "Digits: feature mimicking"
base = "../quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py"
axes = dict(mimic=["off", "foreground", "background", "both"])
seeds = [0, 1, 2]
