# Other layers in place of the last three depthwise convolutions.
title = "ScaledMNIST, 6,000 images: MobileNetV2"
base = "../mnist/mobilenetv2_4e_scaled-mnist-6k.py"
rows = [dict(layers=0)]
rows += [dict(layers=3, conv=conv) for conv in ("mdconv", "dk_local", "dk_dconv", "condconv")]
seeds = [0, 1, 2]
