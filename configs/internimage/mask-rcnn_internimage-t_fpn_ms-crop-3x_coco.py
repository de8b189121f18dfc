_base_ = [
    "../_base_/models/mask-rcnn_internimage-t_fpn.py",
    "../_base_/datasets/coco_instance_ms-crop.py",
    "../_base_/schedules/schedule_3x_adamw.py",
    "../_base_/default_runtime.py",
]
