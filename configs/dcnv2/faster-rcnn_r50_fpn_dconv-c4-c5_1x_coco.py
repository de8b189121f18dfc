_base_ = "./faster-rcnn_r50_fpn_1x_coco.py"

model = dict(backbone=dict(deform=dict(stages=(False, False, True, True), modulated=False)))
