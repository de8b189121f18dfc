_base_ = "./faster-rcnn_r50_fpn_1x_coco.py"

model = dict(
    backbone=dict(deform=dict(stages=(False, False, False, True), modulated=False)),
    roi_head=dict(bbox_roi_extractor=dict(pool="dpool")),
)
