_base_ = "mmdet::_base_/default_runtime.py"

custom_imports = dict(imports=["dcndet.data", "dcndet.models"])

randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="BoxVisualizer", vis_backends=vis_backends)
