# The paper's: 16 epochs, a tenth of the rate after 10 and again after 14; Detectron's warm-up.
_base_ = "./schedule_1x.py"

train_cfg = dict(max_epochs=16)
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=1.0, milestones=[10 / 16, 14 / 16], gamma=0.1),
]
