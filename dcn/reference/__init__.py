"""Each operator in plain PyTorch: its definition, which every faster kernel is tested against.

Pixels outside the map are read as zero times the nearest one inside, so a pixel that is not finite
spreads. The faster kernels do not have this effect.

Both operators are the same computation, a weighted sum of rows: seen channels-last, a feature map
is a table with one row of channels per pixel; a bilinear sample is four rows with four weights, and
a bin of an RoI is all the samples that fall into it. `sampling.py` holds that computation.
"""
