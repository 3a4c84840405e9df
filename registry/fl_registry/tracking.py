# SPDX-License-Identifier: Apache-2.0
"""`Tracker`: what is logged of one run at a time, checked. Where to, its subclasses decide."""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from fl_registry.errors import ArtifactError, InvalidName, RegistryError
from fl_registry.redaction import HIDDEN, is_secret_name, known_secrets, redact
from fl_registry.versions import finite_number

logger = logging.getLogger(__name__)

_REFUSED = re.compile(r"[^\w.\- :/]+")
MAX_PARAM, MAX_TAG = 6000, 8000  # characters that MLflow takes
_MAX_KEY, _MAX_DATASET = 250, 500
_STATUSES = ("FINISHED", "FAILED", "KILLED")
Kind = Literal["params", "metrics", "tags"]
T = TypeVar("T")


def clean_key(name: object) -> str:
    """Return a name that MLflow accepts, always the same for the same name.

    Names that MLflow accepts stay; ``mAP50(B)`` becomes ``mAP50_B``.
    """
    text = str(name)
    cleaned = _REFUSED.sub("_", text)
    if cleaned != text:
        cleaned = cleaned.strip("_ ")
    parts = [part for part in cleaned.split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts) or f"unnamed_{_mark(text)}"
    return cleaned if len(cleaned) <= _MAX_KEY else f"{cleaned[:240]}_{_mark(text)}"


class Names:
    """The names of one run's metrics, or of its params, as MLflow accepts them.

    A name that MLflow refuses is reported once, with the one that replaces it. Two names that
    would become the same one are distinguished by a mark, in one call or in two.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, str] = {}  # by the name that was given

    def __call__(self, fields: Mapping[str, T]) -> dict[str, T]:
        """Return the fields under accepted names."""
        # Unchanged names first: of two that become the same one, those keep it.
        new = fields.keys() - self._accepted.keys()
        for name in sorted(new, key=lambda name: (clean_key(name) != name, str(name))):
            accepted = clean_key(name)
            if accepted in self._accepted.values():
                accepted = f"{accepted[:240]}_{_mark(name)}"
            if accepted != name:
                logger.warning("MLflow cannot take the name %r: logged as %r", name, accepted)
            self._accepted[name] = accepted
        return {self._accepted[name]: value for name, value in fields.items()}


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are finite numbers; the others are reported in the log."""
    numbers = {name: finite_number(value) for name, value in metrics.items()}
    for name in (name for name, number in numbers.items() if number is None):
        logger.warning("metric %s is %r, not a finite number: not logged", name, metrics[name])
    return {name: number for name, number in numbers.items() if number is not None}


def logged_texts(fields: Mapping[str, object], most: int = MAX_PARAM) -> dict[str, str]:
    """Return values as the texts that are logged: without secrets, of at most so many characters.

    A param or a tag can be seen for ever by all who can see the run.
    """
    known, texts = known_secrets(), {}
    for name, value in fields.items():
        is_number = isinstance(value, int | float)  # as in pass=2
        is_secret = is_secret_name(str(name)) and not is_number
        texts[str(name)] = HIDDEN if is_secret else redact(str(value), known=known)[:most]
    return texts


class Tracker(ABC):
    """Logs params, metrics and files of a run, one run at a time.

    As a context manager it starts a run if none is active, and ends it: ``FAILED`` after an
    exception, else ``FINISHED``.

    Attributes
    ----------
    run : Any
        The run started last, None before the first; it stays readable after its end.
    """

    run: Any = None

    def __init__(self) -> None:
        self._running = False
        self._metric_names, self._param_names = Names(), Names()

    def start_run(
        self,
        run_name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> Any:
        """Start a run, or continue the one with `run_id`, and return it.

        Raises
        ------
        RegistryError
            A run is active, or there is no run `run_id`.
        StoreUnavailable
            MLflow does not answer.
        """
        self._require_no_run()
        texts = logged_texts(tags or {}, MAX_TAG)
        run = self._create(run_name, texts) if run_id is None else self._resume(run_id, run_name)
        self.run, self._running = run, True
        self._metric_names, self._param_names = Names(), Names()
        if run_id is not None:
            self._log(run, "tags", texts.items())
        return run

    def adopt_run(self, tags: Mapping[str, str]) -> Any | None:
        """Continue the newest run with all these tags that was started and never ended.

        None if there is none. The caller must know that the process that started it is gone: a run
        that another process still writes to is taken as well.
        """
        if not tags:  # every run would match
            raise RegistryError("A run is looked for by its tags; give at least one.")
        self._require_no_run()
        wanted = logged_texts(tags, MAX_TAG).items()
        for run_id, its_tags in self._unfinished():
            if wanted <= its_tags.items():
                return self.start_run(run_id=run_id)
        return None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log params as text, cut to MLflow's limit; a param cannot be changed later."""
        texts = logged_texts(self._param_names(params), MAX_PARAM)
        self._log(self._active(), "params", texts.items())

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        time: datetime | None = None,
    ) -> None:
        """Log metrics in one synchronous batch.

        Names that MLflow refuses are changed (``mAP50(B)`` becomes ``mAP50_B``), which is reported
        once a run; what is not a finite number is left out with a warning. Logging the same
        numbers again for the same ``time``, which is now by default, changes nothing.
        """
        moment = int((time or datetime.now(UTC)).timestamp() * 1000)
        numbers = self._metric_names(finite_metrics(metrics))
        rows = [(name, number, moment, step or 0) for name, number in numbers.items()]
        self._log(self._active(), "metrics", rows)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._log(self._active(), "tags", logged_texts(tags, MAX_TAG).items())

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        """Store a file or a folder with the run, below `artifact_path`.

        Raises
        ------
        ArtifactError, InvalidName
            There is no such file; `artifact_path` is no path of printable characters.
        """
        file = Path(path).expanduser()
        if not file.exists():
            raise ArtifactError(f"There is no file at {file} to log; check the path.")
        # A path that leads out of the run's files is refused by MLflow.
        if artifact_path is not None and not (artifact_path.isprintable() and artifact_path):
            raise InvalidName(
                f"{artifact_path!r:.60} cannot be a folder of a run's files; use a printable path "
                "such as 'plots'."
            )
        self._log_artifact(self._active(), file, artifact_path)

    def log_dataset(
        self, name: str, digest: str, source: str | Path = "", *, context: str = "holdout"
    ) -> None:
        """Record which data the run was scored on; the data stay where they are.

        Parameters
        ----------
        name : str
            Its name.
        digest : str
            Digest of its content. MLflow stores the first 36 characters, the tag
            ``dataset.<context>`` all of them.
        source : str | Path
            Where it is.
        context : str
            What it was used for.

        Raises
        ------
        InvalidName
            MLflow could not keep a data set so called.
        """
        if not 0 < len(name) <= _MAX_DATASET:
            raise InvalidName(
                f"A data set's name must be a text of 1 to {_MAX_DATASET} characters, not "
                f"{name!r:.60}."
            )
        if not digest:
            raise InvalidName(f"The data set {name!r} has no digest; give one of its content.")
        if not context or clean_key(context) != context:
            raise InvalidName(f"A data set cannot be used as {context!r}; expected e.g. 'holdout'.")
        run = self._active()
        self._log_dataset(run, name, digest, str(source), context)
        self._log(run, "tags", [(f"dataset.{context}", digest)])

    def end_run(self, status: str = "FINISHED") -> None:
        """End the run with status FINISHED, FAILED or KILLED; without a run, do nothing."""
        if status not in _STATUSES:
            raise RegistryError(f"A run cannot end {status!r}; expected {', '.join(_STATUSES)}.")
        if self._is_active:
            self._end(self.run, status)
            self._running = False

    def leave_run(self) -> None:
        """Leave the run active, for another process to continue; makes no call."""
        self._running = False

    def __enter__(self) -> Self:
        if not self._is_active:
            self.start_run()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.end_run("FINISHED" if kind is None else "FAILED")

    @property
    def _is_active(self) -> bool:
        return self.run is not None and self._running

    def _active(self) -> Any:
        if not self._is_active:
            raise RegistryError("No run is active; call start_run() first.")
        return self.run

    def _require_no_run(self) -> None:
        if self._is_active:
            raise RegistryError("A run is already active; end it with end_run() first.")

    @abstractmethod
    def _create(self, name: str | None, tags: Mapping[str, str]) -> Any:
        """Create a run, active, and return it; it has an ``info`` with its ``run_id``."""

    @abstractmethod
    def _resume(self, run_id: str, name: str | None) -> Any:
        """Make a run active again, and return it."""

    @abstractmethod
    def _unfinished(self) -> Iterable[tuple[str, Mapping[str, str]]]:
        """Return id and tags of the runs that never ended, newest first."""

    @abstractmethod
    def _log(self, run: Any, kind: Kind, rows: Iterable[tuple[Any, ...]]) -> None:
        """Log params or tags, rows of name and text, or metrics.

        A row of a metric is its name, value, time in milliseconds since 1970, and step.
        """

    @abstractmethod
    def _log_artifact(self, run: Any, file: Path, folder: str | None) -> None: ...

    @abstractmethod
    def _log_dataset(self, run: Any, name: str, digest: str, source: str, context: str) -> None: ...

    @abstractmethod
    def _end(self, run: Any, status: str) -> None: ...


def _mark(text: object) -> str:
    return hashlib.sha256(str(text).encode("utf-8", "replace")).hexdigest()[:6]
