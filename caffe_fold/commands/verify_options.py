"""Options of ``verify``, which other commands have, too, under the prefix ``--verify-``."""

from __future__ import annotations

from typing import Any, Callable

import click

from caffe_fold.choices import CHANNEL_ORDERS, ENGINES
from caffe_fold.commands.options import Command, each, file_option, shapes
from caffe_fold.errors import InputError, show

__all__ = ["asked_for", "common_options", "input_options"]


def _numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Numbers between commas."""
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{show(text)!r}: expected a number, or one a channel") from None


def common_options(prefix: str = "") -> Callable[[Command], Command]:
    """The options that also a fold with ``--verify`` has."""
    engines = ", ".join(ENGINES[1:])
    return each(
        click.option(
            f"--{prefix}engine",
            type=click.Choice(ENGINES),
            default=ENGINES[0],
            show_default=True,
            help=f"What runs the nets: {engines}, or the first of them that can.",
        ),
        file_option(
            f"--{prefix}caffe-python",
            metavar="PYTHON",
            help="The interpreter that has pycaffe.  [default: $CAFFE_FOLD_CAFFE_PYTHON]",
        ),
        file_option(
            f"--{prefix}input",
            metavar="FILE",
            help="An image, .npy or .npz (by blob) to put in.  [default: random pixels]",
        ),
        click.option(
            f"--{prefix}input-shape",
            f"{prefix.replace('-', '_')}input_shapes",
            multiple=True,
            metavar="BLOB=N,C,H,W",
            callback=shapes,
            help="The shape of an input, where the net has none or another is wanted; repeatable.",
        ),
        click.option(
            f"--{prefix}tolerance",
            type=click.FloatRange(min=0),
            default=1e-4,
            show_default=True,
            help="The largest difference that passes, as a part of the blob's largest value.",
        ),
        click.option(
            f"--{prefix}skip",
            multiple=True,
            metavar="BLOB",
            help="A blob that is not compared; repeatable.",
        ),
    )


def input_options() -> Callable[[Command], Command]:
    """What else there is to say of the input."""
    return each(
        click.option(
            "--mean",
            metavar="NUMBERS",
            callback=_numbers,
            help="Subtracted from the input: a number, or one a channel with commas between.",
        ),
        click.option("--scale", type=float, help="Multiplied with the input then."),
        click.option(
            "--channel-order",
            type=click.Choice(CHANNEL_ORDERS),
            default=CHANNEL_ORDERS[0],
            show_default=True,
            help="The order of an image's channels.",
        ),
        click.option(
            "--samples",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="How many random inputs to try.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="The seed of random inputs.",
        ),
    )


def asked_for(
    context: click.Context, options: dict[str, Any], is_on: bool
) -> dict[str, Any] | None:
    """Take the options of ``verify`` out of a command's; None where it is not asked for.

    :raises InputError: where one is given without ``--verify``.
    """
    prefix = "verify_"
    names = [name for name in options if name.startswith(prefix)]
    found = {name[len(prefix) :]: options.pop(name) for name in names}
    if is_on:
        return found
    default = click.core.ParameterSource.DEFAULT
    for name in names:
        if context.get_parameter_source(name) not in (default, None):
            raise InputError(f"--{name.replace('_', '-')} needs --verify")
    return None
