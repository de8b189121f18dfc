# The table of the article on ConvOffset2D, the row that it lacks, and modulated layers in its
# network. Every row is trained on 120,000 images; the frozen one starts from a run of
# mnist_regular.py of the same seed, which has seen as many before.
title = "MNIST, regular and zoomed"
base = "../mnist/cnn_20e_mnist-both.py"
conv_offset = {"layers": 3, "conv": "conv_offset", "model.backbone.deform.init_std": 0.01}
on_zoomed = {"train_dataloader.dataset.pipeline.0.prob": 1.0}
rows = [
    {"name": "plain, on both"},
    {"name": "plain, on zoomed", **on_zoomed},
    {"name": "mdconv, on both", "layers": 3, "conv": "mdconv"},
    {"name": "ConvOffset2D, on both", **conv_offset},
    {
        "name": "ConvOffset2D in the frozen plain network, on zoomed",
        **conv_offset,
        **on_zoomed,
        "model.frozen": r"^head\.|convs\.\d\.(weight|bias)$",
        "load_from": "work_dirs/studies/mnist_regular/plain_on_regular/seed-{seed}/epoch_2.pth",
        "optim_wrapper.optimizer.lr": 5e-4,
    },
]
pairs = [
    ("ConvOffset2D in the frozen plain network, on zoomed", "plain, on zoomed"),
    ("mdconv, on both", "ConvOffset2D, on both"),
]
metrics = {"zoomed": "accuracy/zoomed/top1", "regular": "accuracy/regular/top1"}
seeds = [0, 1, 2]
options = {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 2}
del conv_offset, on_zoomed
