# Train on MNIST as it is; test on its test set as it is, and zoomed. Digits become up to 2.5 times
# smaller, along each axis on its own, and are shifted, as in the article on ConvOffset2D.
data_root = "data/"

load = dict(type="LoadImageFromNDArray")
# For image files, which Detector and tools/visualize.py read.
gray = dict(type="ToChannels", channels=1)
pack = dict(
    type="PackDetInputs",
    meta_keys=("img_shape", "ori_shape", "scale_factor", "gt_label", "group"),
)
zoom = dict(type="RandomZoom", zoom=(1, 2.5), shift=0.2, per_axis=True)
same_zoom = dict(zoom, seed=0)  # in every evaluation
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="MNIST",
        data_root=data_root,
        train=True,
        pipeline=[pack],
    ),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ConcatDataset",
        datasets=[
            dict(
                type="MNIST",
                data_root=data_root,
                train=False,
                group="regular",
                test_mode=True,
                pipeline=[load, gray, pack],
            ),
            dict(
                type="MNIST",
                data_root=data_root,
                train=False,
                group="zoomed",
                test_mode=True,
                pipeline=[same_zoom, pack],
            ),
        ],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy")
test_evaluator = val_evaluator
