# Sized for a CPU: a tenth of the images, fewer epochs, and Adam, which needs no more.
_base_ = "./scaled-cnn_10e_scaled-mnist.py"

train_dataloader = dict(dataset=dict(indices=6000))
train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="Adam", lr=1e-3))
# A float is a share of the run.
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=1.0, convert_to_iter_based=True)
]
