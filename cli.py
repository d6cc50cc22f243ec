"""The command line: each command is a declaration, one call, and its result printed."""

import logging
import sys
from importlib import import_module
from pathlib import Path

import click

try:
    import_module("pipeline.config")  # and with it the cache
except ImportError:  # where a file or a package of such a name comes first on Python's path
    modules = [sys.modules[name] for name in ("cache", "pipeline") if name in sys.modules]
    files = [Path(str(module.__file__)) for module in modules]
    others = [str(file) for file in files if file.parent.parent != Path(__file__).parent]
    if not others:
        raise
    sys.exit(f"error: {others[0]} hides headgraft's own package of that name: rename it, or take it off Python's path")

from pipeline.command_line.command import Group, as_json, emit, options
from pipeline.command_line.groups import cache, model, weights
from pipeline.config.extract import ExtractConfig
from pipeline.config.folds import CurveConfig, CvConfig
from pipeline.config.heads import CompareConfig, SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, LabelConfig, PredictConfig, ReportConfig, ServeConfig
from pipeline.console import named, version
from pipeline.errors import ConfigError


def _version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"headgraft, version {version()}")
        context.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
@click.option("-q", "verbosity", flag_value="quiet", help="Log warnings and errors only.")
@click.option("-v", "verbosity", flag_value="verbose", help="Log details, such as the epochs of every head retrained.")
@click.option("--json", "misplaced", is_flag=True, hidden=True)
def main(verbosity: str | None, misplaced: bool) -> None:
    """Cache a frozen backbone's features once, train heads from them in seconds, export one model."""
    if misplaced:
        raise click.UsageError("--json comes after the command, as in headgraft weights list --json")


@main.command()
@options(ExtractConfig)
def extract(config: ExtractConfig) -> None:
    """Stage one: compute the features of DATA that the cache lacks. Run it again to resume or to extend."""
    from pipeline.commands.extract import extract

    emit(extract(config))
    if config.shard_of and not config.dry_run:
        done = f"part {config.shard_of} is done: when all parts are, run the same with --finish instead"
        logging.getLogger("headgraft.extract").info(done)


@main.command()
@options(TrainConfig)
def train_head(config: TrainConfig) -> None:
    """Stage two: train one head from the cache."""
    from pipeline.commands.train import train_head

    emit(train_head(config))


@main.command()
@options(SweepConfig)
def sweep(config: SweepConfig) -> None:
    """Stage two: try many heads, keep the best as a run."""
    from pipeline.commands.sweep import sweep

    emit(sweep(config))


@main.command()
@options(CvConfig)
def cv(config: CvConfig) -> None:
    """Cross-validate a head on train and valid. Images are predicted by heads that saw neither them nor their group."""
    from pipeline.commands.cv import cv

    emit(cv(config))


@main.command()
@options(CurveConfig)
def curve(config: CurveConfig) -> None:
    """Learning curve: error by number of images, forecast for more."""
    from pipeline.commands.curve import curve

    emit(curve(config))


@main.command()
@options(CompareConfig)
def compare(config: CompareConfig) -> None:
    """Compare backbones: train the same head on each CACHE of a set."""
    from pipeline.commands.compare import compare

    emit(compare(config))


@main.command()
@options(LabelConfig)
def label(config: LabelConfig) -> None:
    """Label and correct the images of a set in the browser. Each label is kept in the cache; no file is changed."""
    from pipeline.commands.label import label

    label(config)


@main.command()
@options(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> None:
    """Score a RUN from its cache, or a MODEL on images in DATA."""
    from pipeline.commands.evaluate import evaluate

    emit(evaluate(config))


@main.command()
@options(ReportConfig)
def report(config: ReportConfig) -> None:
    """Write one page on RUN. It shows accuracy, errors, possible label errors, cost and what to try next."""
    from pipeline.commands.report import report

    emit(report(config))


@main.command()
@options(ExportConfig)
def export(config: ExportConfig) -> None:
    """Export RUN as one MODEL file, backbone and head. It is verified against the trained head."""
    from pipeline.commands.export import export

    emit(export(config))


@main.command()
@options(PredictConfig)
@click.option("--csv", "table", is_flag=True, help="Print a table as CSV, one line for each class of each image.")
def predict(config: PredictConfig, table: bool) -> None:
    """Predict the classes of images. IMAGE is a file, folder or glob, or - for a list on standard input."""
    from pipeline.commands.predict import as_csv, predict

    if table and as_json():
        raise ConfigError("--csv and --json: choose one")
    result = predict(config)
    for bad in [] if as_json() else result.failed:
        click.echo(f"{named(bad['path'])}: {bad['reason']}", err=True)
    emit(result, as_csv(result.predictions) if table else None)
    sys.exit(1 if result.failed else 0)


@main.command()
@options(ServeConfig)
def serve(config: ServeConfig) -> None:
    """Predict over HTTP with MODEL. It answers POST /predict, GET /health and GET /drift, and has a page."""
    from pipeline.commands.serve import serve

    serve(config)


@main.command()
@click.argument("pattern", default="")
def backbones(pattern: str) -> None:
    """List backbones, those that match PATTERN."""
    from pipeline.commands.list_backbones import list_backbones

    emit(list_backbones(pattern))


@main.command()
def doctor() -> None:
    """Check this installation and this machine. Exit status 1 if stage one or two cannot run."""
    from pipeline.commands.doctor import doctor

    result = doctor()
    emit(result)
    sys.exit(0 if result.ready else 1)


for group in (model, cache, weights):
    main.add_command(group)


if __name__ == "__main__":
    main()
