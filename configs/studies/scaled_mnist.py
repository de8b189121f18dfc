# ScaledMNIST's five rows, at a CPU's schedule: with a GPU, take scaled-cnn_10e_scaled-mnist.py.
title = "ScaledMNIST, 6,000 images"
base = "../mnist/scaled-cnn_4e_scaled-mnist-6k.py"
rows = [dict(layers=0)]
rows += [dict(layers=layers, conv=conv) for conv in ("dconv", "mdconv") for layers in (1, 2)]
seeds = [0, 1, 2]
