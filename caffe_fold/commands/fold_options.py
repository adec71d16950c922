"""Options of ``fold`` that every command which folds has, too."""

from __future__ import annotations

import click

from caffe_fold.choices import BN_LAYOUTS, BN_VARIANCES, WEIGHTS_DTYPES
from caffe_fold.commands.options import Command, each, shapes
from caffe_fold.commands.verify_options import common_options

__all__ = ["fold_options", "plan_options"]


def plan_options(command: Command) -> Command:
    """What is to be folded, and what the files do not say of it."""
    return each(
        click.option(
            "--stage", "stages", multiple=True, help="A stage of the net's state; repeatable."
        ),
        click.option("--level", type=int, help="The level of the net's state."),
        click.option(
            "--keep",
            multiple=True,
            metavar="BLOB",
            help="A blob that must keep its values; repeatable.",
        ),
        click.option(
            "--assume-global-stats",
            is_flag=True,
            help="Fold BatchNorm layers that the prototxt sets to normalise by the batch, too.",
        ),
        click.option(
            "--bn-layout",
            type=click.Choice(BN_LAYOUTS),
            help="The layout of BatchNorm layers of 4 or 5 blobs where the files do not tell it.",
        ),
        click.option(
            "--bn-variance",
            type=click.Choice(BN_VARIANCES),
            default=BN_VARIANCES[0],
            show_default=True,
            help="What a BN layer's fourth blob holds: variance or inverse standard deviation.",
        ),
        click.option(
            "--weights-dtype",
            type=click.Choice(WEIGHTS_DTYPES),
            help="The number type of folded blobs.  [default: the widest that goes into each]",
        ),
        click.option(
            "--drop-quantization",
            is_flag=True,
            help="Fold layers with a quantization_param, too, and drop it.",
        ),
        click.option(
            "--allow-extra-weights",
            is_flag=True,
            help="Go on where the weights have a BatchNorm that the prototxt lacks.",
        ),
    )(command)


def fold_options(command: Command) -> Command:
    """What is to be folded and how, and how it is proven."""
    return each(
        plan_options,
        click.option(
            "--deploy",
            is_flag=True,
            help="Make a deploy net: data layers become Input layers, losses go.",
        ),
        click.option(
            "--input-shape",
            "input_shapes",
            multiple=True,
            callback=shapes,
            metavar="BLOB=N,C,H,W",
            help="With --deploy, the shape of an input; repeatable.",
        ),
        click.option(
            "--engine-caffe", is_flag=True, help="Set 'engine: CAFFE' on 1x1 convolutions."
        ),
        click.option(
            "--equalize",
            is_flag=True,
            help="Balance the weights of layers that follow each other, for int8: outputs stay, "
            "and blobs in between change their scale.",
        ),
        click.option("--no-check", "check", flag_value=False, default=True, help="Skip the proof."),
        click.option(
            "--verify",
            is_flag=True,
            help="Run both nets in an engine before the result gets its name; a net that "
            "differs is not written.",
        ),
        common_options("verify-"),
    )(command)
