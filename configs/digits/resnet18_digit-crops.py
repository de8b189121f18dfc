# Pre-trains the backbone of the detectors in this folder on single digits.
_base_ = [
    "../_base_/datasets/digit_crops.py",
    "../_base_/schedules/schedule_6e_adamw.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    # That of ../quickstart/faster-rcnn_r18_fpn_digits.py.
    backbone=dict(
        type="DeformResNet",
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    in_channels=256,
    num_classes=10,
)
train_cfg = dict(max_epochs=5)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=32)
