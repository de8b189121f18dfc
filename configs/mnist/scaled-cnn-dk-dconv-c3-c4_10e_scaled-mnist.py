_base_ = "./scaled-cnn_10e_scaled-mnist.py"

model = dict(backbone=dict(deform=dict(layers=2, conv="dk_dconv")))
