"""The labelling page of a set, until interrupted."""

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch

from cache.labels import LabelJournal, writing_labels
from cache.store import FeatureCache
from pipeline.config.heads import TrainConfig
from pipeline.config.models import LabelConfig
from pipeline.errors import LabelError
from pipeline.inputs.display_names import read_names
from pipeline.inputs.images import root_now
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.labelling.contents import Contents
from pipeline.labelling.session import Session
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.run_folder import refuse_to_overwrite
from pipeline.service.hosting import host, is_local, listening, require_packages
from pipeline.training import trained_run

logger = logging.getLogger("headgraft.label")


def label(config: LabelConfig) -> None:
    """Serve the page of a set on `host` and `port`; every verdict is in the journal of the cache before it is answered.

    Returns when it is interrupted.

    Raises:
        PipelineError: a package of the extra `serve` is missing.
        RunError: rows exceed `memory`, or `run` holds a run.
        CacheBusy: another process labels in this cache.
    """
    require_packages("label")
    from pipeline.labelling.app import Asked, create_app

    run = config.run or next(path for path in _runs() if not path.exists())
    refuse_to_overwrite(run, config.overwrite)
    with listening(config.host, config.port) as listener:
        cache = FeatureCache.open(config.cache)
        index = cache.extracted(config.set)
        root = root_now(index, config.data)
        names = read_names(config.names, index.classes) if config.names and index.classes else {}
        with writing_labels(config.cache):
            torch.set_num_threads(available_cpus())
            journal = LabelJournal.load(config.cache, index.name)
            journal.make_writable()
            if outdated := journal.outdated(index):
                logger.warning(f"{outdated} labels given by hand do not hold: the data was given a third label since")
            session = Session(index, Contents.load(cache, index, allowed_bytes(config.memory)), journal)
            policy = Preprocessing.of(cache.manifest.base).policy
            asked = Asked(session, root, policy, names, run, Finish(config, run, session))
            app = create_app(asked, session.retrainer.start, session.retrainer.stop, is_local(listener))
            host(app, listener, f"set {index.name!r}", 1_000_000, logger.info)
            logger.info(f"labels given by hand: {len(journal.chains)}, in {journal.path}; train-head uses them")


def _runs() -> Iterator[Path]:
    """Where a run is written that was given no place."""
    yield Path("runs/labelled")
    yield from (Path(f"runs/labelled-{number}") for number in count(2))


class Finish:
    """Trains a head of all labels as `train-head` does, into `run`; what it wrote before is replaced."""

    def __init__(self, config: LabelConfig, run: Path, session: Session) -> None:
        self._config, self._run, self._session, self._wrote = config, run, session, False

    def __call__(self) -> dict[str, Any]:
        """Write the run; LabelError where there are too few labels for one."""
        config, name, labels = self._config, self._session.index.name, self._session.labels()
        if not labels.trainable:
            raise LabelError("there are training images of fewer than two classes: label some of another class first")
        if not len(labels.valid):
            drawn = (
                "about one image in five is drawn for that" if self._session.drawn else "the set has none of its own"
            )
            raise LabelError(f"no validation image has a label, and {drawn}: label more, then finish")
        opened = FeatureCache.open(config.cache)
        index = opened.index(name)
        passes = opened.complete_passes(index)
        if passes < index.passes:
            logger.warning(f"trained on {passes} of {index.passes} passes: extract makes those of new training images")
        overwrite = config.overwrite or self._wrote
        asked = TrainConfig(config.cache, self._run, name, passes, config.memory, overwrite=overwrite)
        record = trained_run(asked).record
        self._wrote = True
        return {
            "run": str(self._run),
            "valid_accuracy": record.valid_accuracy,
            "passes": passes,
            "seconds": record.seconds,
        }
