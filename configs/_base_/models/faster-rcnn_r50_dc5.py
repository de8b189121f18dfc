_base_ = "mmdet::_base_/models/faster-rcnn_r50-caffe-dc5.py"

model = dict(
    type="MimicFasterRCNN",
    backbone=dict(type="DeformResNet"),
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type="DeformRoIExtractor",
            pool="align",
            out_channels=2048,
            featmap_strides=[16],
        )
    ),
)
