# The network of pytorch-deform-conv-v2, for ScaledMNIST.
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(type="ImgDataPreprocessor", mean=[33.3], std=[78.6]),
    backbone=dict(type="SmallCNN", channels=(32, 64, 128, 256), pool_after=(2,)),
    in_channels=256,
    num_classes=10,
)
