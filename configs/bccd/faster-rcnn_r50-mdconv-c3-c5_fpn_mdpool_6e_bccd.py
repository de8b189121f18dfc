_base_ = "./faster-rcnn_r50_fpn_6e_bccd.py"

model = dict(
    backbone=dict(deform=dict(stages=(False, True, True, True))),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=256))),
)
