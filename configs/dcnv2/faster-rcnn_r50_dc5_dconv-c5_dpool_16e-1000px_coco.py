_base_ = "./faster-rcnn_r50_dc5_16e-1000px_coco.py"

model = dict(
    backbone=dict(deform=dict(stages=(False, False, False, True), modulated=False)),
    roi_head=dict(bbox_roi_extractor=dict(pool="dpool")),
)
