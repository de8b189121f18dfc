# The row that the article lacks: its plain network, trained on zoomed digits.
_base_ = "./cnn_10e_mnist.py"

train_dataloader = dict(dataset=dict(pipeline=[{{_base_.zoom}}, {{_base_.pack}}]))
train_cfg = dict(max_epochs=20)
