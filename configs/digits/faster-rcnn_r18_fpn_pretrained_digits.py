# The regular network of the quickstart, from a backbone that has learnt single digits:
# tools/make_digits.py --crops, then tools/train.py configs/digits/resnet18_digit-crops.py.
_base_ = "../quickstart/faster-rcnn_r18_fpn_digits.py"

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type="Pretrained",
            checkpoint="work_dirs/digits/resnet18_digit-crops/epoch_5.pth",
            prefix="backbone.",
        )
    )
)
