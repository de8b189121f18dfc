# The paper's Table 1: which layers deform, with and without modulation.
title = "COCO: deformable layers, modulation and pooling"
base = "../dcnv2/faster-rcnn_r50_dc5_16e-1000px_coco.py"
rows = [
    dict(name="regular, RoIPool", layers=0, pool="roipool"),
    dict(name="regular", layers=0, pool="align"),
    dict(name="dconv c5", layers=3, conv="dconv", pool="align"),
    dict(name="dconv c5 + dpool (DCNv1)", layers=3, conv="dconv", pool="dpool"),
    dict(name="dconv c4-c5", layers=9, conv="dconv", pool="align"),
    dict(name="dconv c4-c5 + dpool", layers=9, conv="dconv", pool="dpool"),
    dict(name="dconv c3-c5", layers=13, conv="dconv", pool="align"),
    dict(name="dconv c3-c5 + dpool", layers=13, conv="dconv", pool="dpool"),
    dict(name="mdconv c3-c5", layers=13, conv="mdconv", pool="align"),
    dict(name="mdconv c3-c5 + mdpool", layers=13, conv="mdconv", pool="mdpool"),
]
baseline = dict(name="regular")
seeds = [0, 1, 2]
