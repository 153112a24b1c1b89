"""The installed package: what it carries, what it promises to type checkers, and how light it is to import."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnemex
from mnemex import _native

FOLDER = Path(mnemex.__file__).parent
OPTIONAL = {"matplotlib", "pandas", "pyarrow", "rich", "safetensors", "torch", "transformers", "typer"}
THREADS = Path("/proc/self/task")


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def names_in(stub: ast.Module | ast.ClassDef) -> set[str]:
    """Collect the names that a stub, or a class of it, defines."""
    names = set()
    for node in stub.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_it_is_marked_as_typed():
    assert (FOLDER / "py.typed").is_file()


def test_the_stub_names_what_the_native_module_has():
    stub = ast.parse((FOLDER / "_native.pyi").read_text())
    assert names_in(stub) == {name for name in vars(_native) if not name.startswith("_")}
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    assert classes
    for name, node in classes.items():
        public = {member for member in vars(getattr(_native, name)) if not member.startswith("_")}
        assert {member for member in names_in(node) if not member.startswith("_")} == public, name


def test_every_public_name_is_there_once_and_documented():
    assert len(mnemex.__all__) == len(set(mnemex.__all__))
    for name in mnemex.__all__:
        assert getattr(mnemex, name).__doc__, f"mnemex.{name} has no docstring"


def test_dir_lists_every_public_name():
    assert set(mnemex.__all__) <= set(dir(mnemex))


def test_numpy_is_the_only_requirement():
    required = importlib.metadata.requires("mnemex") or []
    names = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    assert names == {"numpy"}


def test_the_version_is_the_same_everywhere():
    assert mnemex.__version__ == importlib.metadata.version("mnemex")


def test_the_command_is_installed():
    (command,) = (entry for entry in importlib.metadata.distribution("mnemex").entry_points if entry.name == "mnemex")
    assert command.value == "mnemex.cli:main"
    assert importlib.util.find_spec("mnemex.cli") is not None


def test_one_native_module_is_installed():
    assert len(list(FOLDER.glob("_native*.so")) + list(FOLDER.glob("_native*.pyd"))) == 1


def test_import_brings_numpy_alone():
    loaded = [set(fresh(f"import {name}, sys; print(*sys.modules)").split()) for name in ("numpy", "mnemex")]
    brought = {name.partition(".")[0] for name in loaded[1] - loaded[0]}
    assert not brought & OPTIONAL
    assert {name for name in brought if name not in sys.stdlib_module_names} == {"mnemex"}


def test_import_takes_under_150_milliseconds_of_the_processor():
    code = "import time, numpy; start = time.process_time(); import mnemex; print(time.process_time() - start)"
    seconds = min(float(fresh(code)) for _ in range(3))
    assert seconds < 0.15


@pytest.mark.skipif(not THREADS.is_dir(), reason="threads are counted in /proc, which this system does not have")
def test_import_starts_no_thread():
    code = f"import os, numpy; n = len(os.listdir('{THREADS}')); import mnemex; print(len(os.listdir('{THREADS}')) - n)"
    assert fresh(code) == "0"


def test_an_adapter_without_its_framework_says_what_to_install():
    code = """
import sys
sys.modules["torch"] = None
import mnemex
try:
    mnemex.torch.attention
except mnemex.MissingDependency as error:
    print(error)
"""
    assert "pip install" in fresh(code)
    assert "torch" in fresh(code)


def test_recipes_load_without_torch_and_say_what_the_ones_of_layers_need():
    code = """
import sys
sys.modules["torch"] = None
import mnemex
assert "recipes" in dir(mnemex)
try:
    mnemex.recipes.product_key(8)
except mnemex.MissingDependency as error:
    print(error)
"""
    assert "pip install" in fresh(code)
