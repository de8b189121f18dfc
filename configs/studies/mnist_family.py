# The family in place of the last three convolutions of the article's network.
title = "MNIST, regular and zoomed: the family"
base = "../mnist/cnn_20e_mnist-both.py"
rows = [dict(layers=0)]
rows += [
    dict(layers=3, conv=conv)
    for conv in (
        "dconv",
        "mdconv",
        "dcnv3",
        "dcnv4",
        "dk_local",
        "dk_global",
        "dk_dconv",
        "condconv",
    )
]
# Whether deformable kernels and deformable samples complement each other.
pairs = [("3 layers, dk_dconv", f"3 layers, {alone}") for alone in ("dconv", "dk_local")]
metrics = {"zoomed": "accuracy/zoomed/top1", "regular": "accuracy/regular/top1"}
seeds = [0, 1, 2]
options = {
    "train_cfg.max_epochs": 2,
    "train_cfg.val_interval": 2,
    "train_dataloader.dataset.indices": 20000,
}
