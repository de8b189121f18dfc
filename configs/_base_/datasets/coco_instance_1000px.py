# The paper's image size: the shorter side is 1000 pixels.
_base_ = "./coco_instance.py"

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=(1667, 1000))
test_pipeline[1].update(scale=(1667, 1000))

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
