_base_ = "./faster-rcnn_r18_fpn_6e_bccd.py"

model = dict(backbone=dict(deform=dict(stages=(False, True, True, True))))
