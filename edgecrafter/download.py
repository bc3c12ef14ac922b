"""Fetching released weights: once, with progress, verified, and with a clear word when there is no network."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import torch

from edgecrafter.files import written_beside
from edgecrafter.registry import Weight


def cache_folder() -> Path:
    """Where downloads are kept: ``$EDGECRAFTER_CACHE``, else ``~/.cache/edgecrafter``."""
    return Path(os.environ.get("EDGECRAFTER_CACHE", "~/.cache/edgecrafter")).expanduser()


def download(row: Weight) -> Path:
    """The file of a registry row, fetched once with a progress bar and verified; prints the licence once.

    Raises ``FileNotFoundError`` with one line that says what to download and where to put it when there is no network.
    """
    path = cache_folder() / row.file
    if path.is_file():
        return path
    if not row.direct:
        raise FileNotFoundError(
            f"{row.name}: its authors offer {row.file} on a page only ({row.url}). Open it in a browser, download the "
            f"file and put it at {path}, or give the path of a file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_beside(path) as beside:
            torch.hub.download_url_to_file(row.url, str(beside), hash_prefix=row.sha256 or None)
            if not zipfile.is_zipfile(beside):  # torch's files are; one that was cut off is not
                raise OSError("the file is not complete")
    except (OSError, RuntimeError) as error:  # RuntimeError: another digest than expected
        raise FileNotFoundError(
            f"{row.name}: could not download ({error}). Download {row.url} elsewhere and put it at {path}, "
            "or give the path of a file; to train from random weights use --weights none"
        ) from None
    if not row.sha256:
        print(f"{row.name}: sha256 {sha256(path)}; the registry knows none yet, so nothing could be compared")
    print(f"{row.name}: {row.licence}")
    return path


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def from_hub(repository: str) -> Path:
    """``model.safetensors`` of a repository ``owner/name`` on the Hugging Face Hub, kept in its own cache.

    Raises ``FileNotFoundError`` with the reason when it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:
        raise FileNotFoundError(
            f"hf:{repository}: could not fetch model.safetensors ({type(error).__name__}: {error}). "
            "Download it elsewhere and give its path"
        ) from None
