#!/usr/bin/env python
"""Draw what a trained network's layers see: tools/visualize.py WHAT CONFIG CHECKPOINT ..."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcndet.data.errors import DataError
from dcndet.models.engine.cli import add_config, existing_checkpoint, one_line_errors
from dcndet.models.engine.options import merge_options, read_config
from dcndet.models.inference import Detector
from dcndet.models.visualization import validation_set
from dcndet.models.visualization.files import (
    write_embedding,
    write_offset_fields,
    write_on_object,
    write_points,
    write_receptive_fields,
)


def main():
    args = parse_args()
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options or {})
    if args.what == "serve":
        from dcndet.models.visualization.page import serve  # needs requirements-page.txt

        return serve(cfg, existing_checkpoint(args.checkpoint), args.device, args.host, args.port)
    detector = Detector(cfg, existing_checkpoint(args.checkpoint), args.device)
    if args.what == "points":
        written = write_points(
            detector, args.images, args.out_dir, at=args.at, layer=args.layer, depth=args.depth
        )
    elif args.what == "offsets":
        written = write_offset_fields(detector, args.images, args.out_dir, args.layers)
    elif args.what == "field":
        detectors = {Path(args.config).stem: detector}
        for config, checkpoint in args.compare:
            other = Detector(config, existing_checkpoint(checkpoint), args.device)
            detectors[title(config, checkpoint, detectors)] = other
        written = write_receptive_fields(
            detectors, args.images, args.out_dir, args.at, args.layer, args.box or "detected"
        )
    elif args.what == "embedding":
        written = [write_embedding(detector, validation_set(cfg), args.out_dir, args.images)]
    else:
        picture, table = write_on_object(
            detector, validation_set(cfg), args.out_dir, args.images, args.layers
        )
        print(table)
        written = [picture]
    print(*written, sep="\n")


def parse_args():
    parser = argparse.ArgumentParser(description="Draw what a trained network's layers see.")
    tasks = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    network = argparse.ArgumentParser(add_help=False)
    add_config(network)
    network.add_argument("checkpoint", help="path or URL of the weights")
    network.add_argument("--device", help="for example cuda:1 or cpu (default: a GPU if any)")
    common = argparse.ArgumentParser(add_help=False, parents=[network])
    common.add_argument("--out-dir", default="work_dirs/visualize", help="folder (%(default)s)")
    pictures = argparse.ArgumentParser(add_help=False)
    pictures.add_argument("images", nargs="+", metavar="IMAGE", help="path of an image")
    position = argparse.ArgumentParser(add_help=False)
    position.add_argument(
        "--at",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="pixel of the image (default: the centre of the best detection, or of the image)",
    )
    held_out = argparse.ArgumentParser(add_help=False)
    held_out.add_argument(
        "--images", type=positive, metavar="N", help="the first N of val (default: all)"
    )
    several = argparse.ArgumentParser(add_help=False)
    several.add_argument(
        "--layers", nargs="+", metavar="NAME", help="deformable convolutions (default: all)"
    )

    points = tasks.add_parser(
        "points",
        parents=[common, pictures, position],
        help="where an output position, or the bins of RoIs, sample the image",
    )
    points.add_argument(
        "--layer",
        metavar="NAME",
        help="deformable convolution or RoI pooling (default: the backbone's last convolution)",
    )
    points.add_argument(
        "--depth",
        type=positive,
        default=1,
        metavar="N",
        help="through how many stacked layers (%(default)s)",
    )
    tasks.add_parser(
        "offsets", parents=[common, pictures, several], help="|Δp| and Δm of every layer"
    )
    field = tasks.add_parser(
        "field", parents=[common, pictures, position], help="the effective receptive field"
    )
    field.add_argument(
        "--layer", metavar="NAME", help="any module of the backbone (default: its last map)"
    )
    field.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="of the object (default: the best detection around the position)",
    )
    field.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("CONFIG", "CHECKPOINT"),
        help="another network, drawn beside it; may be repeated",
    )
    tasks.add_parser(
        "embedding", parents=[common, held_out], help="t-SNE of the features of val's objects"
    )
    tasks.add_parser(
        "on-object",
        parents=[common, held_out, several],
        help="the share of samples that lie on val's objects, with offsets and without",
    )
    page = tasks.add_parser(
        "serve", parents=[network], help="a page to upload images to and to click on"
    )
    page.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all (%(default)s)"
    )
    page.add_argument("--port", type=port, default=7860, help="0 takes a free one (%(default)s)")
    return parser.parse_args()


def port(text):
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"from 0 to 65535, got {value}")
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {value}")
    return value


def title(config, checkpoint, taken):
    """The config's name, with the checkpoint's where networks of one config are compared."""
    name, path = Path(config).stem, Path(checkpoint)
    return f"{name}: {path.parent.name}/{path.stem}" if name in taken else name


if __name__ == "__main__":
    with one_line_errors(DataError):
        main()
