# A tenth of the rate after 27 and again after 33 of 36 epochs.
_base_ = "./schedule_1x_adamw.py"

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=1.0, milestones=[27 / 36, 33 / 36], gamma=0.1),
]
