# The paper's Table 3: what is mimicked.
title = "COCO: feature mimicking"
base = "../dcnv2/faster-rcnn_r50-mdconv-c3-c5_dc5_mdpool_mimic_16e-1000px_coco.py"
rows = [
    dict(name="mdconv c3-c5 + mdpool", mimic="off"),
    dict(name="mdconv c3-c5 + mdpool, mimic both", mimic="both"),
    dict(name="mdconv c3-c5 + mdpool, mimic background", mimic="background"),
    dict(name="mdconv c3-c5 + mdpool, mimic foreground", mimic="foreground"),
]
seeds = [0, 1, 2]
