_base_ = "mmdet::_base_/models/faster-rcnn_r50_fpn.py"

model = dict(
    type="MimicTwoStageDetector",
    backbone=dict(type="DeformResNet"),
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type="DeformRoIExtractor",
            pool="align",
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        )
    ),
)
