"""The command line: options → one config → one call → print."""

import errno
import json
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
from pipeline.console import counted, named, results_alone, say
from pipeline.errors import ConfigError
from pipeline.options import DEVICES, ENGINES, PRECISIONS, TTA

if TYPE_CHECKING:
    from cache.remote import CopyResult  # it takes a second to import

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
            return super().invoke(ctx)
        except HeadgraftError as error:
            click.echo("\n".join(map(named, f"error: {error}".split("\n"))), err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt as error:
            kept = "what was written is kept; run the same command to go on"
            resumes = ctx.invoked_subcommand in ("extract", "sweep")
            click.echo(f"interrupted: {kept if resumes else 'run it again'}", err=True)
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
        click.option("--run", type=_PATH, required=True, help="Folder for what is trained."),
        _option(TrainConfig, "set", "Image set.  [default: the only one]", type=str),
        _option(TrainConfig, "passes", "Augmented passes to train on.  [default: all that are whole]", type=int),
        _option(TrainConfig, "dense", "Also train on the windows of dense views of this side; 0: none."),
        _option(
            TrainConfig, "memory", "GB for rows; more are read each epoch.  [default: half of the free]", type=float
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _cluster_options(config: type) -> Callable[[F], F]:
    """What computes, and on which workers."""

    def add(command: F) -> F:
        options = (
            _option(config, "engine", "What computes: this process, or workers of Ray.", type=click.Choice(ENGINES)),
            _option(config, "ray_address", "Of a Ray cluster.  [default: one is begun here]", type=str),
            _option(config, "ray_workers", "Workers.  [default: as many as there is room for]", type=int),
            _option(config, "cpus_per_worker", "Processors of each.  [default: 1, with a GPU 4]", type=int),
            _option(config, "gpus_per_worker", "GPUs of each, or a part of one; 0: none is used."),
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
def main() -> None:
    """Cache a frozen backbone's features once, train heads from them in seconds, export one model."""


@main.command()
@click.argument("data", type=_PATH)
@click.option("--cache", type=_PATH, required=True, help="Folder of the feature cache.")
@_option(ExtractConfig, "set", "Name of the image set.  [default: DATA's last part]", type=str)
@_option(ExtractConfig, "passes", "Augmented passes over the training images.")
@_option(ExtractConfig, "dense", "Side of a larger clean view whose windows are views too, such as 288; 0: none.")
@_option(ExtractConfig, "backbone", "vgg11, vgg13, vgg16, vgg19 or alexnet.")
@_option(ExtractConfig, "weights", "A name, or a file of weights.  [default: ImageNet]", type=str)
@_option(ExtractConfig, "image_size", "Side of the backbone's input in pixels.")
@_option(ExtractConfig, "seed", "Seed of the augmented passes.")
@_option(ExtractConfig, "split_seed", "Seed of the split where DATA has none.")
@_option(ExtractConfig, "precision", "What the backbone computes in.", type=click.Choice(PRECISIONS))
@_option(ExtractConfig, "device", "Where it computes.", type=click.Choice(DEVICES))
@_option(ExtractConfig, "batch_size", "Views a batch.  [default: 8, on CUDA 64]", type=int)
@_option(
    ExtractConfig,
    "workers",
    "Decoding threads; 0 decodes in line.  [default: half the processors, with CUDA all]",
    type=int,
)
@_option(ExtractConfig, "threads", "Computing threads.  [default: all processors]", type=int)
@_option(
    ExtractConfig,
    "grey_range",
    "Value of 16-bit grey that becomes white, or auto: 4095 for 12 bits.  [default: 65535]",
    metavar="MAX|auto",
    type=str,
)
@_option(ExtractConfig, "skip_bad", "Record files that cannot be decoded, and go on.")
@_option(ExtractConfig, "dry_run", "Say what would be done, and stop.")
@_option(ExtractConfig, "shard_of", "i/n: compute the i-th of n parts, beside others that compute theirs.", type=str)
@_option(ExtractConfig, "hash_only", "Hash the images once for all parts, before them; compute nothing.")
@_option(ExtractConfig, "finish", "Index what the parts have computed; compute nothing.")
@_cluster_options(ExtractConfig)
@_option(ExtractConfig, "unit_rows", "Rows a worker makes at once.  [default: up to 128, with a GPU 1000]", type=int)
@_json
def extract(as_json: bool, **options: Any) -> None:
    """Stage one: compute the features of DATA that the cache lacks. Run it again to resume or to extend."""
    from pipeline.extract import extract as run

    result = run(ExtractConfig(**options), say)
    rate = f", {result.images_per_second:.1f} rows/s after the start" if result.images_per_second else ""
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
@_option(TrainConfig, "hidden", "Hidden units.")
@_option(TrainConfig, "dropout", "Dropout probability.")
@_option(TrainConfig, "lr", "Learning rate at the start of the cosine schedule.")
@_option(TrainConfig, "epochs", "Epochs.  [default: about 1,000 steps, 20 to 100 epochs]", type=int)
@_option(TrainConfig, "batch_size", "Images a step.")
@_option(TrainConfig, "weight_decay", "AdamW's weight decay.")
@_option(TrainConfig, "class_weights", "balanced: every class weighs the same.", type=click.Choice(CLASS_WEIGHTS))
@_option(
    TrainConfig,
    "basis",
    "full, pool or pyramid, then +white[:G], then +pca:R, +lda[:G] or +lda[:G]+pca:R.  "
    f"[default: {HeadSettings.basis}; on a reduced cache {REDUCED_BASIS}]",
    type=str,
)
@_option(TrainConfig, "seed", "Seed of weights, order and dropout.")
@_option(TrainConfig, "overwrite", "Replace an existing run.")
@_json
def train_head(as_json: bool, **options: Any) -> None:
    """Stage two: train one head from the cache."""
    from pipeline.train import train_head as run

    result = run(TrainConfig(**options), say)
    accuracy = f"validation accuracy {result.valid_accuracy:.2%} after {counted(len(result.epochs), 'epoch')}"
    _emit(result, as_json, f"{result.run}: {accuracy}, {result.seconds:.1f} s")


@main.command()
@_training_options
@_option(SweepConfig, "heads", "Heads to try.")
@_option(SweepConfig, "epochs", "Epochs of a head that is not stopped early.  [default: as of train-head]", type=int)
@_option(SweepConfig, "time_limit", "Seconds after which the best so far is chosen.", type=float)
@_option(SweepConfig, "space", "TOML file of what to search.  [default: bases, dropout, rates, decay]", type=_PATH)
@_option(SweepConfig, "search", "How heads are found in the space.", type=click.Choice(SEARCHES))
@click.option(
    "--halving/--no-halving",
    default=SweepConfig.halving,
    show_default=True,
    help="Stop the worst heads early (successive halving).",
)
@_option(SweepConfig, "choose_by", "Validation accuracy that decides.", type=click.Choice(METRICS))
@_option(SweepConfig, "seeds", "Retrain the best head, and the default one, with this many seeds.")
@_option(SweepConfig, "device", "Where heads are searched.", type=click.Choice(DEVICES))
@_option(SweepConfig, "merge", "Keep those seeds as one head, their hidden units side by side.")
@_cluster_options(SweepConfig)
@_option(SweepConfig, "seed", "Seed of the search and of all its heads.")
@_option(SweepConfig, "overwrite", "Begin anew in place of an existing run.")
@_json
def sweep(as_json: bool, **options: Any) -> None:
    """Stage two: try many heads, keep the best as a run."""
    from pipeline.search.leaderboard import table
    from pipeline.sweep import sweep as run

    result = run(SweepConfig(**options), say)
    _emit(result, as_json, "" if as_json else table(asdict(result)))


@main.command()
@click.argument("target", type=_PATH, metavar="RUN_OR_MODEL")
@click.argument("data", type=_PATH, required=False)
@_option(EvaluateConfig, "cache", "The run's cache.  [default: where it was]", type=_PATH)
@_option(EvaluateConfig, "split", "train, valid or test.")
@_option(EvaluateConfig, "precision", "For a model.", type=click.Choice(PRECISIONS))
@_option(EvaluateConfig, "device", "For a model.", type=click.Choice(DEVICES))
@_option(EvaluateConfig, "tta", "For a model; flip: also see each image mirrored.", type=click.Choice(TTA))
@_json
def evaluate(as_json: bool, **options: Any) -> None:
    """Score a RUN from its cache, or a MODEL on images in DATA."""
    from pipeline.evaluate import evaluate as run

    r = run(EvaluateConfig(**options), say)
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
@_option(ReportConfig, "output", "Where to write the page.  [default: report.html in RUN]", type=_PATH)
@_option(ReportConfig, "cache", "The run's cache.  [default: where it was]", type=_PATH)
@_option(ReportConfig, "data", "The set's images.  [default: where they were]", type=_PATH)
@_option(ReportConfig, "names", "JSON object of class: display name.", type=_PATH)
@_option(ReportConfig, "overwrite", "Replace an existing file at --output.")
@_json
def report(as_json: bool, **options: Any) -> None:
    """Write one page on RUN. It shows accuracy, errors, possible label errors, cost and what to try next."""
    from pipeline.report import report as run

    result = run(ReportConfig(**options), say)
    text = (
        f"{result.report}: {result.bytes / 1e6:.1f} MB, {result.pictures} pictures; "
        f"{result.valid['top1']['value']:.2%} of validation, {counted(result.duplicates['pairs'], 'near-duplicate')}"
    )
    _emit(result, as_json, text)


@main.command()
@click.argument("run", type=_PATH)
@click.argument("model", type=_PATH)
@_option(ExportConfig, "cache", "The run's cache.  [default: where it was]", type=_PATH)
@_option(ExportConfig, "data", "The set's images.  [default: where they were]", type=_PATH)
@_option(ExportConfig, "names", "JSON object of class: display name.", type=_PATH)
@_option(ExportConfig, "onnx", "Also write this ONNX file, checked against the model.", type=_PATH)
@click.option(
    "--calibrate/--no-calibrate",
    default=ExportConfig.calibrate,
    show_default=True,
    help="Fold a temperature, fitted on validation, into the last layer.",
)
@_option(ExportConfig, "test", "Also compute the calibration error of the test images, and record that evaluation.")
@_option(
    ExportConfig,
    "tta",
    "flip: also fit a temperature for --tta flip, on two views of each validation image.",
    type=click.Choice(TTA),
)
@_option(
    ExportConfig,
    "class_prior",
    "Class frequencies that probabilities are for: none, as trained; train, of the training images; uniform.",
    type=click.Choice(CLASS_PRIORS),
)
@_option(ExportConfig, "overwrite", "Replace an existing model.")
@_json
def export(as_json: bool, **options: Any) -> None:
    """Write RUN as one MODEL file, backbone and head. It is checked against what was trained."""
    from pipeline.export import export as run
    from pipeline.model.markdown import errors_in_words

    result = run(ExportConfig(**options), say)
    parity = result.parity
    text = (
        f"{result.model}: {result.bytes / 1e6:.0f} MB; {parity['images']} images agree with the run within "
        f"{parity['max_abs_diff']:.1g} in log-probability"
    )
    if result.calibration.ece:
        text += f"\ntemperature {result.calibration.temperature:.3f}, {errors_in_words(asdict(result.calibration))}"
    if result.class_prior != "none":
        text += f"\nclass prior: {result.class_prior}"
    if result.onnx:
        within = f"{result.onnx['max_abs_diff']:.1g}"
        text += f"\n{result.onnx['file']}: {result.onnx['bytes'] / 1e6:.0f} MB, the model within {within}"
    _emit(result, as_json, text)


@main.command()
@click.argument("model", type=_PATH)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@_option(PredictConfig, "top_k", "Classes to name for each image.")
@_option(PredictConfig, "names", "JSON object of class: display name.", type=_PATH)
@_option(PredictConfig, "precision", "What the backbone computes in.", type=click.Choice(PRECISIONS))
@_option(PredictConfig, "device", "Where it computes.", type=click.Choice(DEVICES))
@_option(PredictConfig, "tta", "flip: also see each image mirrored.", type=click.Choice(TTA))
@click.option("--csv", "table", is_flag=True, help="Print path,rank,class,name,probability.")
@_json
def predict(as_json: bool, table: bool, **options: Any) -> None:
    """Name the most probable classes of images. IMAGE is a file, folder or glob, or - for a list on standard input."""
    from pipeline.predict import as_csv
    from pipeline.predict import predict as run

    if table and as_json:
        raise ConfigError("--csv and --json: choose one")
    result = run(PredictConfig(**options), say)
    lines = [
        f"{named(p['path'])}: " + ", ".join(f"{named(t['name'])} {t['probability']:.1%}" for t in p["top"])
        for p in result.predictions
    ]
    failed = [f"{named(bad['path'])}: {bad['reason']}" for bad in result.failed]
    if not as_json:
        for line in failed:
            say(line)
    if as_json or table or lines:
        _emit(result, as_json, as_csv(result.predictions) if table else "\n".join(lines))
    if result.failed:
        sys.exit(1)


@main.command()
@click.argument("model", type=_PATH)
@_option(ServeConfig, "host", "Address to listen on.")
@_option(ServeConfig, "port", "Port to listen on.")
@_option(ServeConfig, "precision", "What the backbone computes in.", type=click.Choice(PRECISIONS))
@_option(ServeConfig, "device", "Where it computes.", type=click.Choice(DEVICES))
@_option(ServeConfig, "max_mb", "MB of a request.")
@_option(ServeConfig, "max_files", "Files of a request.")
@_option(ServeConfig, "max_megapixels", "Megapixels of an image.")
@_option(ServeConfig, "max_waiting", "Images that wait at once; beyond, requests are told to come back.")
def serve(**options: Any) -> None:
    """Predict over HTTP with MODEL. It answers POST /predict and GET /health, and has a page."""
    from pipeline.serve import serve as run

    run(ServeConfig(**options), say)


@main.group()
def model() -> None:
    """Model files: what is in one."""


@model.command("info")
@click.argument("model", type=_PATH)
@click.option("--card", type=_PATH, help="Write the card to this file, as Markdown.")
@click.option("--overwrite", is_flag=True, help="Replace an existing card.")
@_json
def model_info(as_json: bool, model: Path, card: Path | None, overwrite: bool) -> None:
    """Say what MODEL is, what it was made of and how good it is."""
    from cache.files import write_atomically
    from pipeline.bundle import load_bundle
    from pipeline.model.markdown import model_card
    from pipeline.run import check_target

    if card is not None:
        check_target(card, overwrite)
    bundle = load_bundle(model)
    text = model_card(bundle)
    if card is not None:
        card.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(card, text.encode("utf-8", "backslashreplace"))
    _emit({"model": str(model), **bundle.card}, as_json, text.rstrip("\n") if card is None else f"{card}: written")


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
    """Say what is in CACHE."""
    from cache.info import in_words, info

    for option, value in (("--set", name), ("--threshold", threshold)):
        if value is not None and not duplicates:
            raise ConfigError(f"{option} is for --duplicates: add that, or leave {option} out")
    found, listed, lines = info(cache), {}, []
    if duplicates:
        from cache.store import FeatureCache
        from pipeline.reporting.duplicates import near_duplicates

        opened = FeatureCache.open(cache)
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
    """Set aside the files of CACHE that are not what was written."""
    from cache.check import repair

    result = repair(cache)
    lost = sum(result.missing.values())
    lines = (
        [f"{len(result.set_aside)} files set aside in {result.place}"] if result.set_aside else ["nothing is damaged"]
    )
    lines += [moved["shard"] for moved in result.set_aside]
    lines += [f"{lost} rows are missing: extract will compute them again"] if lost else []
    _emit(result, as_json, "\n".join(lines))


@cache.command("pack")
@click.argument("cache", type=_PATH)
@click.argument("file", type=_PATH)
@click.option("--set", "name", help="Image set.  [default: the only one]")
@click.option("--passes", type=click.IntRange(0), help="Augmented passes.  [default: all there are]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@_json
def cache_pack(as_json: bool, cache: Path, file: Path, name: str | None, passes: int | None, overwrite: bool) -> None:
    """Write a set as one plain HDF5 FILE. It holds features, labels, paths, splits and passes."""
    from cache.pack import pack

    result = pack(cache, file, name, passes, overwrite)
    _emit(result, as_json, f"{result.file}: {result.rows} rows of {result.set}, {result.bytes / 1e6:.0f} MB")


@cache.command("reduce")
@click.argument("cache", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder of the reduced cache.")
@_option(ReduceConfig, "basis", "What rows are reduced by: pool or pyramid, then +white[:G], +pca:R or +lda[:G].")
@_option(ReduceConfig, "set", "Image set it is fitted on.  [default: the only one]", type=str)
@_option(ReduceConfig, "seeds", "Heads trained on either, to measure what is lost; 0: not measured.")
@_option(ReduceConfig, "memory", "GB for rows.  [default: half of the free]", type=float)
@_json
def cache_reduce(as_json: bool, **options: Any) -> None:
    """Write CACHE in a basis to a smaller cache. What heads lose by that is measured."""
    from pipeline.reduce import reduce_cache

    result = reduce_cache(ReduceConfig(**options), say)
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
@click.option("--overwrite", is_flag=True, help="Replace indexes there that differ.")
@_json
def cache_push(as_json: bool, cache: Path, url: str, overwrite: bool) -> None:
    """Upload the files of CACHE that are missing at URL. Exit status 1 if a file is refused."""
    from cache.remote import push

    _emit_copies(push(cache, url, overwrite, say), as_json, "sent to")


@cache.command("pull")
@click.argument("url")
@click.argument("cache", type=_PATH)
@click.option("--overwrite", is_flag=True, help="Replace indexes of CACHE that differ.")
@_json
def cache_pull(as_json: bool, url: str, cache: Path, overwrite: bool) -> None:
    """Download the files at URL that CACHE lacks. Every file is checked; exit status 1 if one is refused."""
    from cache.remote import pull

    _emit_copies(pull(url, cache, overwrite, say), as_json, "received from")


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
    """Drop a set's index; its rows stay until prune."""
    from cache.prune import forget

    forget(cache, name)
    _emit({"cache": str(cache), "set": name}, as_json, f"{name} is forgotten; prune drops rows that no set uses")


@cache.command("prune")
@click.argument("cache", type=_PATH)
@click.option("--dry-run", is_flag=True, help="Say how much would go, and stop.")
@_json
def cache_prune(as_json: bool, cache: Path, dry_run: bool) -> None:
    """Drop rows that no set uses, spare copies and projections."""
    from cache.prune import prune

    result = prune(cache, dry_run, say)
    done = "would go" if dry_run else "dropped"
    _emit(result, as_json, f"{result.rows} rows, {result.bytes / 1e6:.1f} MB {done}")


@main.group()
def weights() -> None:
    """Pretrained weights: which there are, and fetching them."""


@weights.command("list")
@_json
def weights_list(as_json: bool) -> None:
    """The backbones, their weights, and whether they are on this machine."""
    from pipeline.backbones.backbone import BACKBONES

    known = [spec.weights for spec in BACKBONES.values()]
    rows = [{"backbone": w.backbone, "weights": w.name, "path": str(w.path), "present": w.present} for w in known]
    text = "\n".join(f"{r['backbone']:8} {r['weights']}  {r['path'] if r['present'] else 'not fetched'}" for r in rows)
    _emit({"weights": rows}, as_json, text)


@weights.command("fetch")
@click.argument("backbone", default=ExtractConfig.backbone)
@_json
def weights_fetch(backbone: str, as_json: bool) -> None:
    """Fetch the weights of BACKBONE into the user's weights folder."""
    from pipeline.backbones.backbone import backbone_spec
    from pipeline.backbones.sources import fetch

    named = backbone_spec(backbone).weights
    fetch(named, say)
    _emit({"backbone": backbone, "path": str(named.path)}, as_json, str(named.path))


if __name__ == "__main__":
    main()
