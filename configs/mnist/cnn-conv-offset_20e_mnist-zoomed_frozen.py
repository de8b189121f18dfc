# The article's deformable row: the trained plain network, whose convolutions and classifier stay,
# learns offsets and BatchNorms on zoomed digits. Train cnn_10e_mnist.py first.
_base_ = "./cnn_20e_mnist-zoomed.py"

model = dict(
    frozen=r"^head\.|convs\.\d\.(weight|bias)$",
    backbone=dict(deform=dict(layers=3, conv="conv_offset", init_std=0.01)),
)
load_from = "work_dirs/mnist/cnn_10e_mnist/epoch_10.pth"
optim_wrapper = dict(optimizer=dict(lr=5e-4))
