_base_ = "./faster-rcnn_r50_fpn_16e-1000px_coco.py"

model = dict(
    backbone=dict(deform=dict(stages=(False, True, True, True), modulated=False)),
    roi_head=dict(bbox_roi_extractor=dict(pool="dpool")),
)
