train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=6, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=6, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
    # The convolutions that predict offsets and masks learn at a tenth of the rate.
    paramwise_cfg=dict(custom_keys={"conv_offset": dict(lr_mult=0.1)}),
)
auto_scale_lr = dict(enable=False, base_batch_size=4)
