# Other layers in place of the three depthwise convolutions of the third stage, whose maps are 7×7.
title = "ScaledMNIST, 6,000 images: MobileNetV2"
base = "../mnist/mobilenetv2_4e_scaled-mnist-6k.py"
stages = [False] * 2 + [True] + [False] * 4
rows = [dict(name="regular", layers=0)]
rows += [
    dict(name=conv, stages=stages, conv=conv)
    for conv in ("dconv", "mdconv", "dk_local", "dk_dconv", "condconv")
]
pairs = [("dk_dconv", "dconv"), ("dk_dconv", "dk_local")]
seeds = [0, 1, 2]
del stages
