# ScaledMNIST's five rows, at a CPU's schedule: with a GPU, take scaled-cnn_10e_scaled-mnist.py.
# The last row learns offsets at the full rate, as the published rows do.
title = "ScaledMNIST, 6,000 images"
base = "../mnist/scaled-cnn_4e_scaled-mnist-6k.py"
rows = [dict(layers=0)]
rows += [dict(layers=layers, conv=conv) for conv in ("dconv", "mdconv") for layers in (1, 2)]
rows += [
    {
        "name": "2 layers, mdconv, full rate",
        "layers": 2,
        "conv": "mdconv",
        "optim_wrapper.paramwise_cfg.custom_keys.conv_offset.lr_mult": 1.0,
    }
]
# The published orderings of the deformable rows.
pairs = [
    ("2 layers, dconv", "1 layer, dconv"),
    ("2 layers, mdconv", "1 layer, mdconv"),
    ("1 layer, dconv", "1 layer, mdconv"),
    ("2 layers, mdconv", "2 layers, dconv"),
]
seeds = [0, 1, 2]
