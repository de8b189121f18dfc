# The plain network of the article, trained on MNIST as it is: a row of its table, and where the
# frozen row of mnist_zoomed.py starts. It is a study of its own because it fails on zoomed digits:
# how much that varies with the seed would widen every interval there.
title = "MNIST: trained on regular digits"
base = "../mnist/cnn_10e_mnist.py"
rows = [{"name": "plain, on regular"}]
metrics = {"zoomed": "accuracy/zoomed/top1", "regular": "accuracy/regular/top1"}
seeds = [0, 1, 2]
options = {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 2}
