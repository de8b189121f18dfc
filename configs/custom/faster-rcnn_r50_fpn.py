# One's own data on one GPU: ImageNet weights by download, images of 1333×800.
_base_ = [
    "../_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/datasets/custom_detection.py",
    "../_base_/schedules/schedule_6e_adamw.py",
    "../_base_/default_runtime.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=1)))
train_dataloader = dict(num_workers=4)
train_cfg = dict(max_epochs=12)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(save_best="coco/bbox_mAP"))
