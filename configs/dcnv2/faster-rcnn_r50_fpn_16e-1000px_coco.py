_base_ = [
    "../_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/datasets/coco_detection_1000px.py",
    "../_base_/schedules/schedule_16e.py",
    "../_base_/default_runtime.py",
]

# The paper trains on 2000 proposals an image; mmdet's FPN keeps 1000.
model = dict(train_cfg=dict(rpn_proposal=dict(max_per_img=2000)))
