"""Random calls of the operators, as hypothesis draws them."""

import torch
from hypothesis import strategies as st

every_dtype = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
layouts = st.sampled_from(
    ["contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed"]
)


@st.composite
def convolutions(draw, largest=12):
    narrow = draw(st.sampled_from([0, 0, 1, 2, 4, 8]))  # channels of a group, in and out
    groups = draw(st.sampled_from([4, 8, 12, 16] if narrow else [1, 1, 2, 3]))
    deform_groups = draw(st.sampled_from([1, 2] if narrow else [1, 1, 2, 3]))
    unit = groups * deform_groups
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return dict(
        n=draw(st.integers(0, 3)),
        c_in=groups * narrow or unit * draw(st.integers(1, 24)),
        c_out=groups * (narrow or draw(st.integers(1, 40))),
        size=draw(st.tuples(st.integers(1, largest), st.integers(1, largest))),
        kernel=kernel,
        groups=groups,
        deform_groups=deform_groups,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        # Enough that there is an output.
        padding=tuple(2 * k for k in kernel),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        modulated=draw(st.booleans()),
        bias=draw(st.booleans()),
        layout=draw(st.tuples(layouts, layouts)),
        dtype=draw(every_dtype),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def aggregations(draw, largest=12):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    odd = kernel[0] * kernel[1] % 2 == 1 and kernel != (1, 1)
    return dict(
        n=draw(st.integers(0, 3)),
        groups=draw(st.integers(1, 4)),
        group_channels=draw(st.sampled_from([1, 3, 8, 16, 17, 32, 40])),
        size=draw(st.tuples(st.integers(1, largest), st.integers(1, largest))),
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        # Enough that there is an output.
        padding=tuple(draw(st.integers(k - 1, 2 * k)) for k in kernel),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        offset_scale=draw(st.sampled_from([1.0, 0.5, 2.0])),
        without_centre=draw(st.booleans()) and odd,
        packed=draw(st.booleans()),
        layout=draw(st.tuples(layouts, layouts)),
        dtype=draw(every_dtype),
        threads=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def deform_kernels(draw, largest=12):
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    rotations = draw(st.sampled_from([1, 1, 1, 2, 3]))
    deform_groups = draw(st.sampled_from([0, 0, 1, 1, 2]))
    # Depthwise ones have kernels of their own.
    depthwise = draw(st.sampled_from([True, True, False]))
    most = 40 if depthwise else 3
    c_in = rotations * max(deform_groups, 1) * draw(st.integers(1, most))
    return dict(
        n=draw(st.integers(0, 3)),
        c_in=c_in,
        c_out=c_in if depthwise else draw(st.integers(1, 6)),
        size=draw(st.tuples(st.integers(1, largest), st.integers(1, largest))),
        kernel=kernel,
        scope=draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        groups=c_in if depthwise else 1,
        rotations=rotations,
        deform_groups=deform_groups,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        # Enough that there is an output.
        padding=tuple(draw(st.integers(k - 1, 2 * k)) for k in kernel),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        clamp=draw(st.booleans()),
        bias=draw(st.booleans()),
        layout=draw(st.tuples(layouts, layouts)),
        dtype=draw(every_dtype),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def poolings(draw, largest=14):
    return dict(
        n=draw(st.integers(1, 2)),
        channels=draw(st.integers(1, 70)),
        size=draw(st.tuples(st.integers(1, largest), st.integers(1, largest))),
        rois=draw(st.integers(0, 6)),
        output_size=draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))),
        sampling_ratio=draw(st.sampled_from([0, 1, 2, 4])),
        offset=draw(st.booleans()),
        mask=draw(st.booleans()),
        layout=draw(st.tuples(layouts, layouts)),
        dtype=draw(every_dtype),
        threads=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )
