# Other layers in place of the four depthwise convolutions of the second stage, whose maps are 7×7.
title = "ScaledMNIST, 6,000 images: ResNet-50-DW"
base = "../mnist/resnet50dw_4e_scaled-mnist-6k.py"
stages = [False, True, False, False]
rows = [dict(name="regular", layers=0)]
rows += [
    dict(name=conv, stages=stages, conv=conv)
    for conv in ("dconv", "mdconv", "dk_local", "dk_dconv", "condconv")
]
pairs = [("dk_dconv", "dconv"), ("dk_dconv", "dk_local")]
seeds = [0, 1, 2]
del stages
