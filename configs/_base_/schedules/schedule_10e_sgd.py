train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=10, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.5, weight_decay=1e-4)
)
auto_scale_lr = dict(enable=True, base_batch_size=32)
