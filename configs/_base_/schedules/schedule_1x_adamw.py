_base_ = "./schedule_1x.py"

# All tensors of one dimension are without weight decay: norms, biases and layer scales.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
