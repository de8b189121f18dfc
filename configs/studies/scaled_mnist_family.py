# The family in place of the last two convolutions of ScaledMNIST's network.
title = "ScaledMNIST, 6,000 images: the family"
base = "../mnist/scaled-cnn_4e_scaled-mnist-6k.py"
rows = [dict(layers=0)]
rows += [
    dict(layers=2, conv=conv)
    for conv in ("mdconv", "dcnv3", "dcnv4", "dk_local", "dk_global", "dk_dconv", "condconv")
]
seeds = [0, 1, 2]
