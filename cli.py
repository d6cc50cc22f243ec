"""The command line: options → one config → one call → print."""

import errno
import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

try:
    import_module("pipeline.config")  # and with it the cache
except ImportError:  # where a file or a package of such a name comes first on Python's path
    modules = [sys.modules[name] for name in ("cache", "pipeline") if name in sys.modules]
    places = [Path(str(module.__file__)) for module in modules]
    others = [str(place) for place in places if place.parent.parent != Path(__file__).parent]
    if not others:
        raise
    sys.exit(f"error: {others[0]} hides headgraft's own package of that name: rename it, or take it off Python's path")

from cache.errors import HeadgraftError
from pipeline.config import (
    CLASS_PRIORS,
    CLASS_WEIGHTS,
    METRICS,
    REDUCED_BASIS,
    SEARCHES,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    HeadSettings,
    PredictConfig,
    ReduceConfig,
    ReportConfig,
    ServeConfig,
    SweepConfig,
    TrainConfig,
)
from pipeline.console import counted, named, results_alone, shown
from pipeline.errors import ConfigError
from pipeline.options import DEVICES, ENGINES, PRECISIONS, TTA

if TYPE_CHECKING:
    from cache.remote import CopyResult  # it takes a second to import

_LEVELS = {None: logging.INFO, "quiet": logging.WARNING, "verbose": logging.DEBUG}
F = TypeVar("F", bound=Callable[..., Any])


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends as tidily as an interrupt from the keyboard."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


class _Command(click.Command):
    """A command whose result is all that it prints on standard output; `obj` of its context prints it."""

    def invoke(self, ctx: click.Context) -> Any:
        with results_alone() as ctx.obj:
            return super().invoke(ctx)


class _Group(click.Group):
    """Commands about one thing."""

    command_class = _Command


class _Main(_Group):
    """Our errors become one message and exit status 1, or 2 for wrong usage; others are bugs with a traceback."""

    group_class = _Group

    def invoke(self, ctx: click.Context) -> Any:
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            with shown(_LEVELS[ctx.params["verbosity"]]):
                return super().invoke(ctx)
        except HeadgraftError as error:
            click.echo("\n".join(map(named, f"error: {error}".split("\n"))), err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt as error:
            kept = "progress was saved; rerun the same command to resume"
            resumes = ctx.invoked_subcommand in ("extract", "sweep")
            click.echo(f"interrupted: {kept if resumes else 'rerun the command'}", err=True)
            ctx.exit(143 if isinstance(error, _Terminated) else 130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # nobody reads the output any more: click ends quietly
            reason = error.strerror or str(error)
            click.echo(f"error: {error.filename or 'the system'}: {reason}", err=True)
            ctx.exit(1)
        finally:
            signal.signal(signal.SIGTERM, before)


def _default(config: type, name: str) -> Any:
    return next(field.default for field in fields(config) if field.name == name)


def _option(config: type, name: str, help: str, **extra: Any) -> Callable[[F], F]:
    """An option `--name-in-dashes` whose default is the config's own."""
    default = _default(config, name)
    flag = f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        return click.option(flag, name, is_flag=True, default=default, help=help)
    if default is not None and "type" not in extra:
        extra["type"] = type(default)
    return click.option(flag, name, default=default, show_default=default is not None, help=help, **extra)


_PATH = click.Path(path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def _training_options(command: F) -> F:
    """What one head and a sweep are asked alike: from where, into which run, on which rows."""
    options = (
        click.option("--cache", type=_PATH, required=True, help="Folder of the feature cache."),
        click.option("--run", type=_PATH, required=True, help="Folder of the run: the trained head and its records."),
        _option(TrainConfig, "set", "Image set.  [default: the only one]", type=str),
        _option(TrainConfig, "passes", "Augmented passes to train on.  [default: all complete passes]", type=int),
        _option(
            TrainConfig,
            "memory",
            "Memory for features in GB; more is streamed.  [default: half of free RAM]",
            type=float,
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _cluster_options(config: type) -> Callable[[F], F]:
    """What computes, and on which workers."""

    def add(command: F) -> F:
        options = (
            _option(config, "engine", "Run in this process, or on Ray workers.", type=click.Choice(ENGINES)),
            _option(config, "ray_address", "Ray cluster address.  [default: start a local cluster]", type=str),
            _option(config, "ray_workers", "Number of Ray workers.  [default: as many as fit]", type=int),
            _option(config, "cpus_per_worker", "CPUs per Ray worker.  [default: 1; 4 with a GPU]", type=int),
            _option(config, "gpus_per_worker", "GPUs per Ray worker, also a fraction; 0 = no GPU."),
        )
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _emit(result: Any, as_json: bool, text: str) -> None:
    """The result as JSON, or in words; both on standard output."""
    if as_json:
        line = json.dumps(asdict(result) if is_dataclass(result) and not isinstance(result, type) else result)
    else:
        line = "\n".join(map(named, text.split("\n")))  # names may hold anything, commands to a terminal too
    click.get_current_context().obj(line)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headgraft")
@click.option("-q", "verbosity", flag_value="quiet", help="Log warnings and errors only.")
@click.option("-v", "verbosity", flag_value="verbose", help="Log details, such as the epochs of every head retrained.")
def main(verbosity: str | None) -> None:
    """Cache a frozen backbone's features once, train heads from them in seconds, export one model."""


@main.command()
@click.argument("data", type=_PATH)
@click.option("--cache", type=_PATH, required=True, help="Folder of the feature cache.")
@_option(ExtractConfig, "set", "Name of the image set.  [default: last component of DATA]", type=str)
@_option(ExtractConfig, "passes", "Number of augmented passes over the training images.")
@_option(ExtractConfig, "backbone", "Pretrained network: vgg11, vgg13, vgg16, vgg19 or alexnet.")
@_option(ExtractConfig, "weights", "Name of the weights, or a weights file.  [default: ImageNet]", type=str)
@_option(ExtractConfig, "image_size", "Input size of the backbone in pixels.")
@_option(ExtractConfig, "seed", "Random seed of the augmented passes.")
@_option(ExtractConfig, "split_seed", "Random seed of the split, where DATA has none.")
@_option(ExtractConfig, "precision", "Compute precision of the backbone.", type=click.Choice(PRECISIONS))
@_option(ExtractConfig, "device", "Device of the backbone.", type=click.Choice(DEVICES))
@_option(ExtractConfig, "batch_size", "Images per batch.  [default: 8; 64 on CUDA]", type=int)
@_option(
    ExtractConfig,
    "workers",
    "Decoding threads; 0 = decode in the main thread.  [default: half of the CPUs; all with CUDA]",
    type=int,
)
@_option(ExtractConfig, "threads", "Compute threads.  [default: all CPUs]", type=int)
@_option(
    ExtractConfig,
    "grey_range",
    "White level of 16-bit grey images, or auto; 4095 for 12-bit data.  [default: 65535]",
    metavar="MAX|auto",
    type=str,
)
@_option(ExtractConfig, "skip_bad", "Skip undecodable files (they are recorded) instead of failing.")
@_option(ExtractConfig, "dry_run", "Print the plan and exit.")
@_option(ExtractConfig, "shard_of", "i/n: compute part i of n; other processes compute the others.", type=str)
@_option(ExtractConfig, "hash_only", "Hash the images once, before the parts; compute nothing.")
@_option(ExtractConfig, "finish", "Write the index after all parts are computed; compute nothing.")
@_cluster_options(ExtractConfig)
@_option(
    ExtractConfig,
    "unit_rows",
    "Rows per unit of work (Ray).  [default: up to 128; 1000 with a GPU]",
    type=int,
)
@_json
def extract(as_json: bool, **options: Any) -> None:
    """Stage one: compute the features of DATA that the cache lacks. Run it again to resume or to extend."""
    from pipeline.extract import extract as run

    result = run(ExtractConfig(**options))
    rate = f", {result.images_per_second:.1f} rows/s after startup" if result.images_per_second else ""
    counts = f"{result.rows} rows in {result.cache}: {result.computed} computed, {result.reused} reused"
    text = f"{counts}, {result.seconds:.1f} s{rate}"
    if options["shard_of"]:
        text = f"part {options['shard_of']}: {text}; when all parts are done, run the same with --finish instead"
    if options["hash_only"]:
        text = f"{result.images} images listed in {result.cache}, {result.rows - result.reused} rows to compute"
    if options["dry_run"]:
        text = f"dry run: of {result.rows} rows, {result.rows - result.reused} would be computed"
    skipped = "".join(f"\nskipped {named(bad['path'])}: {bad['reason']}" for bad in result.skipped)
    _emit(result, as_json, text + skipped)


@main.command("train-head")
@_training_options
@_option(TrainConfig, "hidden", "Hidden units; 0 = logistic regression.")
@_option(TrainConfig, "dropout", "Dropout probability.")
@_option(TrainConfig, "lr", "Initial learning rate of the cosine schedule.")
@_option(TrainConfig, "epochs", "Epochs.  [default: about 1,000 steps, 20 to 100 epochs]", type=int)
@_option(TrainConfig, "batch_size", "Images per step.")
@_option(TrainConfig, "weight_decay", "Weight decay of AdamW.")
@_option(
    TrainConfig,
    "class_weights",
    "balanced: weight loss by inverse class frequency.",
    type=click.Choice(CLASS_WEIGHTS),
)
@_option(
    TrainConfig,
    "basis",
    "full, pool or pyramid, then +white[:G], then +pca:R, +lda[:G] or +lda[:G]+pca:R.  "
    f"[default: {HeadSettings.basis}; on a reduced cache {REDUCED_BASIS}]",
    type=str,
)
@_option(TrainConfig, "seed", "Random seed of weights, shuffling and dropout.")
@_option(TrainConfig, "overwrite", "Overwrite an existing run.")
@_json
def train_head(as_json: bool, **options: Any) -> None:
    """Stage two: train one head from the cache."""
    from pipeline.train import train_head as run

    result = run(TrainConfig(**options))
    accuracy = f"validation accuracy {result.valid_accuracy:.2%} after {counted(len(result.epochs), 'epoch')}"
    _emit(result, as_json, f"{result.run}: {accuracy}, {result.seconds:.1f} s")


@main.command()
@_training_options
@_option(SweepConfig, "heads", "Number of heads to try.")
@_option(SweepConfig, "epochs", "Epochs of a head that is not stopped early.  [default: as for train-head]", type=int)
@_option(SweepConfig, "time_limit", "Seconds until the search ends; the best head so far is chosen.", type=float)
@_option(
    SweepConfig,
    "space",
    "TOML file of the search space.  [default: bases, dropout, rates, decay]",
    type=_PATH,
)
@_option(SweepConfig, "search", "Search strategy.", type=click.Choice(SEARCHES))
@click.option(
    "--halving/--no-halving",
    default=SweepConfig.halving,
    show_default=True,
    help="Stop the worst heads early (successive halving).",
)
@_option(SweepConfig, "choose_by", "Validation metric that decides.", type=click.Choice(METRICS))
@_option(SweepConfig, "seeds", "Retrain the best head, and the default one, with this many seeds.")
@_option(SweepConfig, "device", "Device of the search.", type=click.Choice(DEVICES))
@_option(SweepConfig, "merge", "Merge the heads of all seeds into one head (mean of their logits).")
@_cluster_options(SweepConfig)
@_option(SweepConfig, "seed", "Random seed of the search and its heads.")
@_option(SweepConfig, "overwrite", "Overwrite an existing run.")
@_json
def sweep(as_json: bool, **options: Any) -> None:
    """Stage two: try many heads, keep the best as a run."""
    from pipeline.search.leaderboard import table
    from pipeline.sweep import sweep as run

    result = run(SweepConfig(**options))
    _emit(result, as_json, "" if as_json else table(result))


@main.command()
@click.argument("target", type=_PATH, metavar="RUN_OR_MODEL")
@click.argument("data", type=_PATH, required=False)
@_option(EvaluateConfig, "cache", "Folder of the feature cache.  [default: the path recorded in the run]", type=_PATH)
@_option(EvaluateConfig, "split", "Split to score: train, valid or test.")
@_option(EvaluateConfig, "precision", "Compute precision of the backbone (models only).", type=click.Choice(PRECISIONS))
@_option(EvaluateConfig, "device", "Device of the backbone (models only).", type=click.Choice(DEVICES))
@_option(
    EvaluateConfig,
    "tta",
    "Test-time augmentation (models only); flip: average with the mirror image.",
    type=click.Choice(TTA),
)
@_json
def evaluate(as_json: bool, **options: Any) -> None:
    """Score a RUN from its cache, or a MODEL on images in DATA."""
    from pipeline.evaluate import evaluate as run

    r = run(EvaluateConfig(**options))
    scores = {"top-1": "top1", "top-5": "top5", "mean per class": "mean_per_class"}
    shown = [
        f"{name} {getattr(r, key):.2%} ({' to '.join(f'{bound:.2%}' for bound in r.intervals[key])})"
        for name, key in scores.items()
        if key in r.intervals
    ]
    images = f"{r.split}, {r.images} images of {counted(r.classes, 'class')}"
    text = f"{images}: {', '.join(shown)}, calibration error {r.ece:.3f} (floor {r.ece_floor:.3f})"
    _emit(r, as_json, f"{text}; in brackets 95 % intervals over images")


@main.command()
@click.argument("run", type=_PATH)
@_option(ReportConfig, "output", "Path of the page.  [default: report.html in RUN]", type=_PATH)
@_option(ReportConfig, "cache", "Folder of the feature cache.  [default: the path recorded in the run]", type=_PATH)
@_option(ReportConfig, "data", "Folder of the images.  [default: the path recorded in the cache]", type=_PATH)
@_option(ReportConfig, "names", "JSON file of display names by class.", type=_PATH)
@_option(ReportConfig, "overwrite", "Overwrite an existing file at --output.")
@_json
def report(as_json: bool, **options: Any) -> None:
    """Write one page on RUN. It shows accuracy, errors, possible label errors, cost and what to try next."""
    from pipeline.report import report as run

    result = run(ReportConfig(**options))
    text = (
        f"{result.report}: {result.bytes / 1e6:.1f} MB, {result.pictures} pictures; validation accuracy "
        f"{result.valid['top1']['value']:.2%}, {counted(result.duplicates['pairs'], 'near-duplicate')}"
    )
    _emit(result, as_json, text)


@main.command()
@click.argument("run", type=_PATH)
@click.argument("model", type=_PATH)
@_option(ExportConfig, "cache", "Folder of the feature cache.  [default: the path recorded in the run]", type=_PATH)
@_option(ExportConfig, "data", "Folder of the images.  [default: the path recorded in the cache]", type=_PATH)
@_option(ExportConfig, "names", "JSON file of display names by class.", type=_PATH)
@_option(ExportConfig, "onnx", "Path of an ONNX file to write as well, verified against the model.", type=_PATH)
@click.option(
    "--calibrate/--no-calibrate",
    default=ExportConfig.calibrate,
    show_default=True,
    help="Temperature scaling, fitted on the validation images and folded into the last layer.",
)
@_option(ExportConfig, "test", "Also compute the calibration error of the test images; recorded as a test evaluation.")
@_option(
    ExportConfig,
    "tta",
    "flip: also fit a temperature for predictions with --tta flip.",
    type=click.Choice(TTA),
)
@_option(
    ExportConfig,
    "class_prior",
    "Class frequencies to correct probabilities for: train, uniform, or none (as trained).",
    type=click.Choice(CLASS_PRIORS),
)
@_option(ExportConfig, "overwrite", "Overwrite an existing model.")
@_json
def export(as_json: bool, **options: Any) -> None:
    """Export RUN as one MODEL file, backbone and head. It is verified against the trained head."""
    from pipeline.export import export as run
    from pipeline.model.markdown import errors_in_words

    result = run(ExportConfig(**options))
    parity = result.parity
    text = (
        f"{result.model}: {result.bytes / 1e6:.0f} MB; {parity['images']} images agree with the run within "
        f"{parity['max_abs_diff']:.1g} in log-probability"
    )
    if result.calibration.ece:
        text += f"\ntemperature {result.calibration.temperature:.3f}, {errors_in_words(result.calibration)}"
    if result.class_prior != "none":
        text += f"\nclass prior: {result.class_prior}"
    if result.onnx:
        within = f"{result.onnx['max_abs_diff']:.1g}"
        text += f"\n{result.onnx['file']}: {result.onnx['bytes'] / 1e6:.0f} MB, the model within {within}"
    _emit(result, as_json, text)


@main.command()
@click.argument("model", type=_PATH)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@_option(PredictConfig, "top_k", "Number of classes per image.")
@_option(PredictConfig, "names", "JSON file of display names by class.", type=_PATH)
@_option(PredictConfig, "precision", "Compute precision of the backbone.", type=click.Choice(PRECISIONS))
@_option(PredictConfig, "device", "Device of the backbone.", type=click.Choice(DEVICES))
@_option(
    PredictConfig,
    "tta",
    "Test-time augmentation; flip: average with the mirror image.",
    type=click.Choice(TTA),
)
@click.option("--csv", "table", is_flag=True, help="Print path,rank,class,name,probability.")
@_json
def predict(as_json: bool, table: bool, **options: Any) -> None:
    """Predict the classes of images. IMAGE is a file, folder or glob, or - for a list on standard input."""
    from pipeline.predict import as_csv
    from pipeline.predict import predict as run

    if table and as_json:
        raise ConfigError("--csv and --json: choose one")
    result = run(PredictConfig(**options))
    lines = [
        f"{named(p['path'])}: " + ", ".join(f"{named(t['name'])} {t['probability']:.1%}" for t in p["top"])
        for p in result.predictions
    ]
    failed = [f"{named(bad['path'])}: {bad['reason']}" for bad in result.failed]
    if not as_json:
        for line in failed:
            click.echo(line, err=True)
    if as_json or table or lines:
        _emit(result, as_json, as_csv(result.predictions) if table else "\n".join(lines))
    if result.failed:
        sys.exit(1)


@main.command()
@click.argument("model", type=_PATH)
@_option(ServeConfig, "host", "Address to listen on.")
@_option(ServeConfig, "port", "Port to listen on.")
@_option(ServeConfig, "precision", "Compute precision of the backbone.", type=click.Choice(PRECISIONS))
@_option(ServeConfig, "device", "Device of the backbone.", type=click.Choice(DEVICES))
@_option(ServeConfig, "max_mb", "Maximum size of a request in MB.")
@_option(ServeConfig, "max_files", "Maximum number of files per request.")
@_option(ServeConfig, "max_megapixels", "Maximum size of an image in megapixels.")
@_option(ServeConfig, "max_waiting", "Maximum number of queued images; further requests get status 503.")
def serve(**options: Any) -> None:
    """Predict over HTTP with MODEL. It answers POST /predict and GET /health, and has a page."""
    from pipeline.serve import serve as run

    run(ServeConfig(**options))


@main.group()
def model() -> None:
    """Model files: inspect."""


@model.command("info")
@click.argument("model", type=_PATH)
@click.option("--card", type=_PATH, help="Path of a Markdown file to write the card to.")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing card.")
@_json
def model_info(as_json: bool, model: Path, card: Path | None, overwrite: bool) -> None:
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
    _emit({"model": str(model), **bundle.stored}, as_json, text.rstrip("\n") if card is None else f"{card}: written")


@main.group()
def cache() -> None:
    """Feature caches: inspect, verify, repair, copy, reduce, prune."""


@cache.command("info")
@click.argument("cache", type=_PATH)
@click.option("--duplicates", is_flag=True, help="Also list near-duplicate images.")
@click.option("--set", "name", help="With --duplicates: image set.  [default: the only one]")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="With --duplicates: minimum cosine similarity.  [default: one false pair is expected]",
)
@_json
def cache_info(as_json: bool, cache: Path, duplicates: bool, name: str | None, threshold: float | None) -> None:
    """Show the contents of CACHE."""
    from cache.info import in_words, info
    from cache.store import FeatureCache

    for option, value in (("--set", name), ("--threshold", threshold)):
        if value is not None and not duplicates:
            raise ConfigError(f"{option} is for --duplicates: add that, or leave {option} out")
    opened = FeatureCache.open(cache)
    found, listed, lines = info(opened), {}, []
    if duplicates:
        from pipeline.reporting.duplicates import near_duplicates

        near = near_duplicates(opened, opened.index(name), threshold)
        listed = {"duplicates": [asdict(pair) for pair in near.pairs], "near_duplicates": near.threshold.as_json()}
        lines = [f"near-duplicates {counted(len(near.pairs), 'pair')}; {near.threshold}", *map(str, near.pairs)]
    _emit({**asdict(found), **listed}, as_json, "\n".join([in_words(found), *lines]))


@cache.command("verify")
@click.argument("cache", type=_PATH)
@click.option("--full", is_flag=True, help="Also hash every image and compare it with the index.")
@_json
def cache_verify(as_json: bool, cache: Path, full: bool) -> None:
    """Check every file of CACHE against its digest. Exit status 1 if any is bad."""
    from cache.check import verify
    from pipeline.inputs.images import changed_files

    result = verify(cache, changed_files if full else None)
    lines = [f"{result.shards} shards, {result.rows} rows, {len(result.bad)} bad"]
    lines += [f"{bad['shard']}: {bad['reason']}" for bad in result.bad]
    lines += [f"{name}: {change}" for name, changes in result.changed.items() for change in changes]
    _emit(result, as_json, "\n".join(lines))
    if result.bad or result.changed:
        sys.exit(1)


@cache.command("repair")
@click.argument("cache", type=_PATH)
@_json
def cache_repair(as_json: bool, cache: Path) -> None:
    """Quarantine the corrupted files of CACHE."""
    from cache.check import repair

    result = repair(cache)
    lost = sum(result.missing.values())
    lines = (
        [f"{len(result.set_aside)} files quarantined in {result.place}"]
        if result.set_aside
        else ["no file is corrupted"]
    )
    lines += [moved["shard"] for moved in result.set_aside]
    lines += [f"{lost} rows are missing: extract will compute them again"] if lost else []
    _emit(result, as_json, "\n".join(lines))


@cache.command("pack")
@click.argument("cache", type=_PATH)
@click.argument("file", type=_PATH)
@click.option("--set", "name", help="Name of the image set.  [default: the only one]")
@click.option("--passes", type=click.IntRange(0), help="Number of augmented passes.  [default: all complete passes]")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
@_json
def cache_pack(as_json: bool, cache: Path, file: Path, name: str | None, passes: int | None, overwrite: bool) -> None:
    """Write a set as one plain HDF5 FILE. It holds features, labels, paths, splits and passes."""
    from cache.pack import pack

    result = pack(cache, file, name, passes, overwrite)
    _emit(result, as_json, f"{result.file}: {result.rows} rows of {result.set}, {result.bytes / 1e6:.0f} MB")


@cache.command("reduce")
@click.argument("cache", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder of the reduced cache.")
@_option(ReduceConfig, "basis", "Basis: pool or pyramid, then +white[:G], +pca:R or +lda[:G].")
@_option(ReduceConfig, "set", "Image set the basis is fitted on.  [default: the only one]", type=str)
@_option(ReduceConfig, "seeds", "Number of heads trained on both caches to measure the loss of accuracy; 0 = off.")
@_option(ReduceConfig, "memory", "Memory for features in GB.  [default: half of free RAM]", type=float)
@_json
def cache_reduce(as_json: bool, **options: Any) -> None:
    """Project CACHE into a smaller cache. The loss of accuracy is measured."""
    from pipeline.reduce import reduce_cache

    result = reduce_cache(ReduceConfig(**options))
    lines = [
        f"{result.out}: {result.rows} rows of {result.out_features} in place of {result.in_features}, "
        f"{result.bytes / 1e6:.1f} MB in place of {result.source_bytes / 1e6:.1f}, "
        f"{result.computed} reduced, {result.reused} reused, {result.seconds:.1f} s"
    ]
    if found := result.accuracy:
        each = [f"{found[of]['mean']:.2%} ± {100 * found[of]['std']:.2f} {of}" for of in ("whole", "reduced")]
        lines.append(f"validation accuracy over {counted(found['seeds'], 'seed')}: {', '.join(each)}")
        lines.append(
            f"cost {100 * found['lost']:.2f} points ± {100 * found['error']:.2f} (standard error, paired over seeds); "
            f"95 % interval over seeds and images {100 * found['low']:.2f} to {100 * found['high']:.2f}"
        )
    _emit(result, as_json, "\n".join(lines))


@cache.command("push")
@click.argument("cache", type=_PATH)
@click.argument("url")
@click.option("--overwrite", is_flag=True, help="Overwrite indexes at URL that differ.")
@_json
def cache_push(as_json: bool, cache: Path, url: str, overwrite: bool) -> None:
    """Upload the files of CACHE that are missing at URL. Exit status 1 if a file is refused."""
    from cache.remote import push

    _emit_copies(push(cache, url, overwrite), as_json, "sent to")


@cache.command("pull")
@click.argument("url")
@click.argument("cache", type=_PATH)
@click.option("--overwrite", is_flag=True, help="Overwrite indexes of CACHE that differ.")
@_json
def cache_pull(as_json: bool, url: str, cache: Path, overwrite: bool) -> None:
    """Download files that are missing in CACHE from URL. Exit status 1 if a file is refused."""
    from cache.remote import pull

    _emit_copies(pull(url, cache, overwrite), as_json, "received from")


def _emit_copies(result: "CopyResult", as_json: bool, done: str) -> None:
    lines = [
        f"{counted(result.shards, 'shard')} {done} {result.url}, {result.bytes / 1e6:.1f} MB, "
        f"{result.present} there already; {len(result.sets)} of the sets, {result.seconds:.1f} s"
    ]
    lines += [f"refused {refused['file']}: {refused['reason']}" for refused in result.refused]
    _emit(result, as_json, "\n".join(lines))
    if result.refused:
        sys.exit(1)


@cache.command("forget")
@click.argument("cache", type=_PATH)
@click.option("--set", "name", required=True, help="Image set.")
@_json
def cache_forget(as_json: bool, cache: Path, name: str) -> None:
    """Delete the index of a set; its rows stay until prune."""
    from cache.prune import forget

    forget(cache, name)
    _emit({"cache": str(cache), "set": name}, as_json, f"{name} is forgotten; prune deletes rows that no set uses")


@cache.command("prune")
@click.argument("cache", type=_PATH)
@click.option("--dry-run", is_flag=True, help="Print how much would be deleted and exit.")
@_json
def cache_prune(as_json: bool, cache: Path, dry_run: bool) -> None:
    """Delete rows that no set uses, duplicate rows and projections."""
    from cache.prune import prune

    result = prune(cache, dry_run)
    done = "would be deleted" if dry_run else "deleted"
    _emit(result, as_json, f"{result.rows} rows, {result.bytes / 1e6:.1f} MB {done}")


@main.group()
def weights() -> None:
    """Pretrained weights: list, fetch."""


@weights.command("list")
@_json
def weights_list(as_json: bool) -> None:
    """List backbones, and whether their weights are on this machine."""
    from pipeline.backbones.spec import BACKBONES

    known = [spec.weights for spec in BACKBONES.values()]
    rows = [{"backbone": w.backbone, "weights": w.name, "path": str(w.path), "present": w.present} for w in known]
    text = "\n".join(f"{r['backbone']:8} {r['weights']}  {r['path'] if r['present'] else 'not fetched'}" for r in rows)
    _emit({"weights": rows}, as_json, text)


@weights.command("fetch")
@click.argument("backbone", default=ExtractConfig.backbone)
@_json
def weights_fetch(backbone: str, as_json: bool) -> None:
    """Fetch the weights of BACKBONE into the user's weights folder."""
    from pipeline.backbones.sources import fetch
    from pipeline.backbones.spec import backbone_spec

    named = backbone_spec(backbone).weights
    fetch(named)
    _emit({"backbone": backbone, "path": str(named.path)}, as_json, str(named.path))


if __name__ == "__main__":
    main()
