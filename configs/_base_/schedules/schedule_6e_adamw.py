train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=6, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# A float is a share of the run.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=1.0, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
auto_scale_lr = dict(enable=True, base_batch_size=4)
