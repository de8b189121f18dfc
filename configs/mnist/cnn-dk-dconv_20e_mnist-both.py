_base_ = "./cnn_20e_mnist-both.py"

model = dict(backbone=dict(deform=dict(layers=3, conv="dk_dconv")))
