# The paper's network: conv5 at stride 16, a 1×1 convolution to 256 channels before RoI pooling, and
# the RPN on conv4. Caffe's ResNet-50, whose weights the authors' own come closest to.
_base_ = "mmdet::_base_/models/faster-rcnn_r50-caffe-dc5.py"

model = dict(
    type="MimicTwoStageDetector",
    backbone=dict(type="DeformResNet", out_indices=(2, 3)),
    neck=dict(type="DC5Neck", in_channels=2048, out_channels=256),
    rpn_head=dict(
        type="Conv4RPNHead",
        in_channels=1024,
        feat_channels=512,
        loss_bbox=dict(type="SmoothL1Loss", beta=1 / 9),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type="DeformRoIExtractor",
            pool="align",
            out_channels=256,
            featmap_strides=[16],
        ),
        bbox_head=dict(
            in_channels=256,
            loss_bbox=dict(type="SmoothL1Loss", beta=1.0),
            init_cfg=dict(
                type="Normal",
                std=0.01,
                override=[dict(name=name) for name in ("shared_fcs", "fc_cls", "fc_reg")],
            ),
        ),
    ),
)
