_base_ = "./faster-rcnn_r50_fpn_mdconv-c3-c5_mdpool_1x_coco.py"

model = dict(mimic=dict(on="foreground"))
