_base_ = "./faster-rcnn_lite0_fpn_8e_cards.py"

model = dict(
    backbone=dict(deform=dict(layers=6)),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=256))),
    mimic=dict(num_rois=4, crop_size=96),
)
