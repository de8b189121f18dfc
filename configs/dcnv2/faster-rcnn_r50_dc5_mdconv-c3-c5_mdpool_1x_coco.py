_base_ = "./faster-rcnn_r50_dc5_1x_coco.py"

model = dict(
    backbone=dict(deform=dict(stages=(False, True, True, True))),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool")),
)
