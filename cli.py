"""The command line: each command is a declaration, one call, and its result printed."""

import logging
import sys
from dataclasses import asdict
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

from pipeline.command_line import PATH, Group, as_json, emit, options
from pipeline.config import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    LabelConfig,
    PredictConfig,
    ReduceConfig,
    ReportConfig,
    ServeConfig,
    SweepConfig,
    TrainConfig,
)
from pipeline.console import named
from pipeline.cv_config import CurveConfig, CvConfig
from pipeline.errors import ConfigError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headgraft")
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
    from pipeline.extract import extract

    emit(extract(config))
    if config.shard_of and not config.dry_run:
        done = f"part {config.shard_of} is done: when all parts are, run the same with --finish instead"
        logging.getLogger("headgraft.extract").info(done)


@main.command()
@options(TrainConfig)
def train_head(config: TrainConfig) -> None:
    """Stage two: train one head from the cache."""
    from pipeline.train import train_head

    emit(train_head(config))


@main.command()
@options(SweepConfig)
def sweep(config: SweepConfig) -> None:
    """Stage two: try many heads, keep the best as a run."""
    from pipeline.sweep import sweep

    emit(sweep(config))


@main.command()
@options(CvConfig)
def cv(config: CvConfig) -> None:
    """Cross-validate a head on train and valid. Images are predicted by heads that saw neither them nor their group."""
    from pipeline.cv import cv

    emit(cv(config))


@main.command()
@options(CurveConfig)
def curve(config: CurveConfig) -> None:
    """Learning curve: error by number of images, forecast for more."""
    from pipeline.curve import curve

    emit(curve(config))


@main.command()
@options(CompareConfig)
def compare(config: CompareConfig) -> None:
    """Compare backbones: train the same head on each CACHE of a set."""
    from pipeline.compare import compare

    emit(compare(config))


@main.command()
@options(LabelConfig)
def label(config: LabelConfig) -> None:
    """Label and correct the images of a set in the browser. Each label is kept in the cache; no file is changed."""
    from pipeline.label import label

    label(config)


@main.command()
@options(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> None:
    """Score a RUN from its cache, or a MODEL on images in DATA."""
    from pipeline.evaluate import evaluate

    emit(evaluate(config))


@main.command()
@options(ReportConfig)
def report(config: ReportConfig) -> None:
    """Write one page on RUN. It shows accuracy, errors, possible label errors, cost and what to try next."""
    from pipeline.report import report

    emit(report(config))


@main.command()
@options(ExportConfig)
def export(config: ExportConfig) -> None:
    """Export RUN as one MODEL file, backbone and head. It is verified against the trained head."""
    from pipeline.export import export

    emit(export(config))


@main.command()
@options(PredictConfig)
@click.option("--csv", "table", is_flag=True, help="Print a table as CSV, one line for each class of each image.")
def predict(config: PredictConfig, table: bool) -> None:
    """Predict the classes of images. IMAGE is a file, folder or glob, or - for a list on standard input."""
    from pipeline.predict import as_csv, predict

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
    from pipeline.serve import serve

    serve(config)


@main.group()
def model() -> None:
    """Model files: inspect."""


@model.command("info")
@click.argument("model", type=PATH)
@click.option("--card", type=PATH, help="Path of a Markdown file to write the card to.")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing card.")
def model_info(model: Path, card: Path | None, overwrite: bool) -> None:
    """Show the card of MODEL: architecture, training, scores."""
    from cache.files import write_atomically
    from pipeline.model.file import load_bundle
    from pipeline.model.markdown import model_card
    from pipeline.run_folder import check_target

    if card is not None:
        check_target(card, overwrite)
    bundle = load_bundle(model)
    text = model_card(bundle)
    if card is not None:
        card.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(card, text.encode("utf-8", "backslashreplace"))
    emit({"model": str(model), **bundle.stored}, text.rstrip("\n") if card is None else f"{card}: written")


@main.group()
def cache() -> None:
    """Feature caches: inspect, verify, repair, copy, reduce, prune."""


@cache.command("info")
@click.argument("cache", type=PATH)
@click.option("--duplicates", is_flag=True, help="Also list near-duplicate images.")
@click.option("--set", "name", help="With --duplicates: image set.  [default: the only one]")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="With --duplicates: minimum cosine of whitened, pooled features.  [default: one false pair is expected]",
)
def cache_info(cache: Path, duplicates: bool, name: str | None, threshold: float | None) -> None:
    """Show the contents of CACHE."""
    from cache.info import info
    from cache.store import FeatureCache

    for option, value in (("--set", name), ("--threshold", threshold)):
        if value is not None and not duplicates:
            raise ConfigError(f"{option} is for --duplicates: add that, or leave {option} out")
    opened = FeatureCache.open(cache)
    found = info(opened)
    words = found.in_words()
    if duplicates:
        from pipeline.duplicates.near_duplicates import near_duplicates

        near = near_duplicates(opened, opened.index(name), threshold)
        found.duplicates, found.near_duplicates = [asdict(pair) for pair in near.pairs], near.threshold.as_json()
        words += f"\n{near.in_words()}"
    emit(found, words)


@cache.command("verify")
@click.argument("cache", type=PATH)
@click.option("--full", is_flag=True, help="Also hash every image and compare it with the index.")
def cache_verify(cache: Path, full: bool) -> None:
    """Check every file of CACHE against its digest. Exit status 1 if any is bad."""
    from cache.check import verify
    from pipeline.inputs.images import changed_files

    result = verify(cache, changed_files if full else None)
    emit(result)
    sys.exit(1 if result.bad or result.changed else 0)


@cache.command("repair")
@click.argument("cache", type=PATH)
def cache_repair(cache: Path) -> None:
    """Quarantine the corrupted files of CACHE."""
    from cache.check import repair

    emit(repair(cache))


@cache.command("pack")
@click.argument("cache", type=PATH)
@click.argument("file", type=PATH)
@click.option("--set", "name", help="Name of the image set.  [default: the only one]")
@click.option("--passes", type=click.IntRange(0), help="Number of augmented passes.  [default: all complete passes]")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
def cache_pack(cache: Path, file: Path, name: str | None, passes: int | None, overwrite: bool) -> None:
    """Write a set as one plain HDF5 FILE. It holds features, labels, paths, splits and passes."""
    from cache.pack import pack

    emit(pack(cache, file, name, passes, overwrite))


@cache.command("labels")
@click.argument("cache", type=PATH)
@click.option("--set", "name", help="Name of the image set.  [default: the only one]")
@click.option("--csv", "file", type=PATH, help="Path of a CSV file to write: path,label,split, which extract reads.")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
def cache_labels(cache: Path, name: str | None, file: Path | None, overwrite: bool) -> None:
    """Show the labels given by hand. With --csv, write all labels of a set as a table."""
    from pipeline.labels import labels

    emit(labels(cache, name, file, overwrite))


@cache.command("reduce")
@options(ReduceConfig)
def cache_reduce(config: ReduceConfig) -> None:
    """Project CACHE into a smaller cache. The loss of accuracy is measured."""
    from pipeline.reduce import reduce_cache

    emit(reduce_cache(config))


@cache.command("push")
@click.argument("cache", type=PATH)
@click.argument("url")
@click.option("--overwrite", is_flag=True, help="Overwrite indexes at URL that differ.")
def cache_push(cache: Path, url: str, overwrite: bool) -> None:
    """Upload the files of CACHE that are missing at URL. Exit status 1 if a file is refused."""
    from cache.remote import push

    result = push(cache, url, overwrite)
    emit(result)
    sys.exit(1 if result.refused else 0)


@cache.command("pull")
@click.argument("url")
@click.argument("cache", type=PATH)
@click.option("--overwrite", is_flag=True, help="Overwrite indexes of CACHE that differ.")
def cache_pull(url: str, cache: Path, overwrite: bool) -> None:
    """Download files that are missing in CACHE from URL. Exit status 1 if a file is refused."""
    from cache.remote import pull

    result = pull(url, cache, overwrite)
    emit(result)
    sys.exit(1 if result.refused else 0)


@cache.command("forget")
@click.argument("cache", type=PATH)
@click.option("--set", "name", required=True, help="Image set.")
def cache_forget(cache: Path, name: str) -> None:
    """Delete the index of a set. Its rows stay until prune, and labels given by hand stay."""
    from cache.prune import forget

    emit(forget(cache, name))


@cache.command("prune")
@click.argument("cache", type=PATH)
@click.option("--dry-run", is_flag=True, help="Print how much would be deleted and exit.")
def cache_prune(cache: Path, dry_run: bool) -> None:
    """Delete rows that no set uses, duplicate rows and projections."""
    from cache.prune import prune

    emit(prune(cache, dry_run))


@main.command()
@click.argument("pattern", default="")
def backbones(pattern: str) -> None:
    """List backbones, those that match PATTERN."""
    from pipeline.list_backbones import list_backbones

    emit(list_backbones(pattern))


@main.group()
def weights() -> None:
    """Pretrained weights: list, fetch."""


@weights.command("list")
def weights_list() -> None:
    """List backbones, and whether their weights are on this machine."""
    from pipeline.weights import list_weights

    emit(list_weights())


@weights.command("fetch")
@click.argument("backbone", default=ExtractConfig.backbone)
def weights_fetch(backbone: str) -> None:
    """Fetch weights into the user's weights folder. BACKBONE is vgg16 by default."""
    from pipeline.weights import fetch_weights

    emit(fetch_weights(backbone))


if __name__ == "__main__":
    main()
