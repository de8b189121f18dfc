_base_ = "mmdet::_base_/schedules/schedule_1x.py"

# The convolutions that predict offsets and masks learn at a tenth of the rate.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"conv_offset": dict(lr_mult=0.1)}))
