_base_ = "mmdet::_base_/schedules/schedule_1x.py"

# Floats are shares of the run: a tenth of the rate after 8 and again after 11 of 12 epochs.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=1.0, milestones=[8 / 12, 11 / 12], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=16)
