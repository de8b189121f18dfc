# What R-CNN feature mimicking is worth where the context misleads: 6 fragments of other digits
# around each one, on average; from weights that know single digits.
title = "Digits among 6 fragments each: feature mimicking"
base = "../digits/faster-rcnn_r18_fpn_mdconv_mdpool_mimic_pretrained_digits-clutter-6.py"
axes = dict(mimic=["off", "foreground", "background", "both"])
seeds = [0, 1, 2, 3, 4]
