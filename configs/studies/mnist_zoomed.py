# The table of the article on ConvOffset2D, the row that it lacks, and other layers in its network.
# Every row is trained on 240,000 images. The frozen one starts from configs/mnist/cnn_10e_mnist.py,
# which has seen 600,000 before: one training, whatever the seed.
title = "MNIST, regular and zoomed"
base = "../mnist/cnn_20e_mnist-both.py"
rows = [
    {"name": "plain, on zoomed", "train_dataloader.dataset.pipeline.0.prob": 1.0},
    {"name": "plain, on regular", "train_dataloader.dataset.pipeline.0.prob": 0.0},
    {"name": "plain, on both"},
    {"name": "mdconv, on both", "layers": 3, "conv": "mdconv"},
    {
        "name": "ConvOffset2D, on both",
        "layers": 3,
        "conv": "conv_offset",
        "model.backbone.deform.init_std": 0.01,
    },
    {
        "name": "ConvOffset2D in the frozen plain network, on zoomed",
        "layers": 3,
        "conv": "conv_offset",
        "model.backbone.deform.init_std": 0.01,
        "model.frozen": r"^head\.|convs\.\d\.(weight|bias)$",
        "train_dataloader.dataset.pipeline.0.prob": 1.0,
        "load_from": "work_dirs/mnist/cnn_10e_mnist/epoch_10.pth",
        "optim_wrapper.optimizer.lr": 5e-4,
    },
]
metrics = {"zoomed": "accuracy/zoomed/top1", "regular": "accuracy/regular/top1"}
seeds = [0, 1, 2]
options = {"train_cfg.max_epochs": 4, "train_cfg.val_interval": 4}
