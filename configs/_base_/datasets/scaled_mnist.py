# ScaledMNIST: in frames of 56×56, 2/3 to twice as large as in MNIST, drawn once.
data_root = "data/"

zoom = dict(type="RandomZoom", zoom=(0.5, 1.5), size=56, seed=0)
pack = dict(type="PackDetInputs", meta_keys=("img_shape", "ori_shape", "scale_factor", "gt_label"))
pipeline = [zoom, pack]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="MNIST", data_root=data_root, train=True, pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="MNIST", data_root=data_root, train=False, test_mode=True, pipeline=pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy")
test_evaluator = val_evaluator
