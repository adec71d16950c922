"""``caffe-fold demo``: a net to try the fold on."""

from __future__ import annotations

import click

from caffe_fold.commands.options import a_folder
from caffe_fold.commands.printing import print_report, printing_to_reader

__all__ = ["demo"]


@click.command()
@click.argument("folder", shell_complete=a_folder, metavar="[DIR]", default="caffe-fold-demo")
def demo(folder: str) -> None:
    """Make a MobileNet-SSD with random weights in DIR, fold it, and report.

    DIR is made where it is not there; by default caffe-fold-demo. The files mobilenet_ssd.* in
    it are replaced.
    """
    from pathlib import Path

    from caffe_fold.convert import fold as fold_files
    from caffe_fold.demo import write_demo
    from caffe_fold.errors import OutputError

    try:
        model, weights = write_demo(Path(folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error
    with printing_to_reader():
        click.echo(f"made  {model}\nmade  {weights}\n")
        click.echo(f"$ caffe-fold --model {model} --weights {weights}")
    print_report(fold_files(model, weights), as_json=False, quiet=False)
