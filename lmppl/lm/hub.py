"""Model folders from the Hugging Face cache or hub, without waiting for a network that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model"]
"""What is taken from a repository: never pickled weights, never code."""
REACH_SECONDS = 4.0

Progress = Callable[[str], None]


def cached(repo: str) -> Path | None:
    """The folder of a repository that is in the user's cache already, or None."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    if not (Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").is_dir():
        return None  # known without importing the client, which takes half a second
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(repo, "config.json")
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no valid name of a repository
        return None
    complete = isinstance(config, str) and any(folder.glob("*.safetensors"))
    return folder if complete else None


def fetch(repo: str, say: Progress) -> Path | str:
    """The folder of a repository, downloaded; or why it could not be had, in words."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError:
        return "huggingface_hub is not installed"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(repo, timeout=REACH_SECONDS)
    except Exception as error:  # unreachable, refused, absent: every client raises its own kind
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    say(f"{repo}: downloading into the Hugging Face cache")
    try:
        return Path(snapshot_download(repo, allow_patterns=FILES))
    except Exception as error:
        return f"the download stopped: {type(error).__name__}: {error}"
