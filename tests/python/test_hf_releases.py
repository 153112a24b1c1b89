"""Releases of PyTorch and transformers: which are refused, which are warned of, and that the texts name the same."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the transformers adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the transformers adapter needs transformers")

import mnemex as mx  # noqa: E402
from hf_models import make, make_other, memory_of  # noqa: E402
from mnemex._releases import RANGE, check  # noqa: E402

ROOT = Path(__file__).parents[2]
# What the adapter itself holds, whatever other tests did to the modules of this process.
HELD = importlib.import_module("mnemex.hf.attach")
PACKAGES = {"torch": HELD.torch, "transformers": HELD.transformers}
TOO_OLD = [("torch", "2.8.0+cpu"), ("torch", "1.13.1"), ("transformers", "5.15.2"), ("transformers", "4.57.1")]
TOO_NEW = [("torch", "2.14.0"), ("transformers", "5.24.0"), ("transformers", "6.0.0.dev0")]


@pytest.mark.parametrize(("package", "version"), TOO_OLD)
def test_attaching_with_an_older_release_is_refused_and_leaves_the_model_alone(monkeypatch, package, version):
    model, plain = make("llama"), torch.nn.MultiheadAttention(8, 2)
    memory = memory_of(model)
    monkeypatch.setattr(PACKAGES[package], "__version__", version)
    refused = pytest.raises(mx.MissingDependency, match=rf"{package} {re.escape(version)} is installed.*pip install")
    with refused:
        mx.hf.attach(model, memory)
    assert model.config._attn_implementation == "sdpa"
    if package == "torch":
        with refused:
            mx.torch.attach(plain, mx.Bank(heads=2, key_dim=4, value_dim=4))


@pytest.mark.parametrize(("package", "version"), TOO_OLD)
def test_an_adapter_of_an_older_release_is_not_loaded(package, version):
    name = {"torch": "torch", "transformers": "hf"}[package]
    code = f"""
import {package}
{package}.__version__ = "{version}"
import mnemex
try:
    mnemex.{name}
except mnemex.MissingDependency as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    oldest = ".".join(map(str, RANGE[package][0]))
    assert f"{package} {version} is installed" in told
    assert f"pip install '{package}>={oldest}'" in told


@pytest.mark.parametrize(("package", "version"), TOO_NEW)
def test_attaching_with_a_newer_release_warns_and_works(monkeypatch, package, version):
    model = make("llama")
    memory = memory_of(model)
    monkeypatch.setattr(PACKAGES[package], "__version__", version)
    with pytest.warns(UserWarning, match=f"{package} {version} is newer than") as warned:
        mx.hf.attach(model, memory).detach()
    assert warned[0].filename == __file__


def test_both_ends_and_what_is_installed_are_taken_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for package, ends in RANGE.items():
            for end in ends:
                check(package, ".".join(map(str, end)) + ".1")
            check(package, PACKAGES[package].__version__)


def test_a_learned_bias_is_refused_before_transformers_5_20(monkeypatch):
    t5, bart = make_other("t5"), make_other("bart")
    memories = memory_of(t5), memory_of(bart)
    monkeypatch.setattr(PACKAGES["transformers"], "__version__", "5.19.0")
    with pytest.raises(mx.Unsupported, match=r"T5ForConditionalGeneration biases keys .* 5\.19\.0 .* install 5\.20"):
        mx.hf.attach(t5, memories[0])
    mx.hf.attach(bart, memories[1]).detach()


def test_pyproject_and_the_readme_name_the_same_releases():
    (old_torch, new_torch), (old, new) = ([".".join(map(str, x)) for x in RANGE[p]] for p in ("torch", "transformers"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["torch"] == [f"torch>={old_torch}"]
    assert f"transformers>={old},<6" in extras["hf"]
    said = f"PyTorch {old_torch} to {new_torch}, transformers {old} to {new}"
    for page in ("README.md", "docs/index.md"):
        assert said in " ".join((ROOT / page).read_text().split()), page
