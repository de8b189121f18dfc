_base_ = "./faster-rcnn_r50_fpn_16e-1000px_coco.py"

model = dict(mimic=dict(on="foreground"))
