_base_ = "./faster-rcnn_r50_dc5_1x_coco.py"

model = dict(mimic=dict(on="foreground"))
