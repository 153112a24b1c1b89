"""The demo from beginning to end, with a small random model from a folder and a text of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the demo needs torch")
pytest.importorskip("transformers", reason="the demo needs transformers")

import mnemex as mx  # noqa: E402
from demo_parts import saved_model  # noqa: E402
from mnemex.demo.continuation import n_equal  # noqa: E402
from mnemex.demo.pretrained import native_dtype  # noqa: E402
from mnemex.demo.reopen import digest, digest_elsewhere  # noqa: E402
from mnemex.demo.run import Finished, Settings, run  # noqa: E402
from mnemex.errors import ArgumentError  # noqa: E402

LINES = "".join(f"line {i}: {'odd' if i % 2 else 'even'}, \u00e9\t{i * i}\n" for i in range(20))


class Diary:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.done: list[int] = []
        self.results: list[str] = []

    def start(self, task: str, total: int):
        self.tasks.append((task, total))
        self.done.append(0)

        def advance(n: int) -> None:
            self.done[-1] += n

        return advance

    def end(self, result: str) -> None:
        self.results.append(result)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Finished, Diary]:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "notes.txt").write_text(LINES, "utf-8")
    model = saved_model(folder / "model")
    diary = Diary()
    settings = Settings(
        str(model), folder / "notes.txt", window=16, top_k=(9, 2, 9), n_tokens=300, out=folder / "out",
        dtype="float32", other_windows=True,
    )  # fmt: skip
    return run(settings, diary), diary


def test_reading_every_entry_is_full_attention_and_the_others_differ(ran):
    plain, window, two, nine, every, full = ran[0].report.rows
    assert every.bits_per_byte == pytest.approx(full.bits_per_byte, abs=1e-5)
    assert len({round(row.bits_per_byte, 6) for row in (plain, window, two, nine, full)}) == 5
    assert [row.k for row in (window, two, nine, every, full)] == [0, 2, 9, None, 0]


def test_windows_are_compared_on_one_beginning_of_the_text(ran):
    windows = ran[0].report.windows
    assert windows.n_tokens == 100
    assert [point.window for point in windows.points] == [4, 16, 32]
    assert all(point.alone != point.with_memory for point in windows.points)
    # The given window has the figures of the passes over the whole text, cut off; the loss of a token knows no future.
    reading, given = ran[0].report.reading, windows.points[1]
    for nats, bits in ((reading.with_window, given.alone), (reading.with_memory, given.with_memory)):
        part = slice(32, 100)
        assert bits == pytest.approx(nats[part].sum() / math.log(2) / reading.text.n_bytes[part].sum())


def test_heads_and_ages_add_up_to_the_mass_that_the_text_is_tinted_by(ran):
    reading = ran[0].report.reading
    by_layer = reading.spread.by_layer
    assert sorted(by_layer) == [0, 1]
    assert all(len(shares) == 4 for shares in by_layer.values())
    assert np.mean([*by_layer.values()]) == pytest.approx(reading.passages.mass[32:].mean(), rel=1e-5)
    ages = reading.spread.ages()
    assert ages.edges[0] == 16
    assert ages.read.sum() == pytest.approx(1)
    assert ages.offered.sum() == pytest.approx(1)


def test_bytes_and_times_are_measured(ran):
    report = ran[0].report
    n, per_token = len(report.reading.text.ids), 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, dim, float32
    assert n == 300
    assert report.full.local_bytes == n * per_token
    assert report.baseline.local_bytes == 19 * per_token
    assert report.n_entries == n - 19
    for row in report.rows:
        assert (row.memory_bytes >= report.n_entries * per_token) == (row.k != 0)
        assert row.ms_per_token > 0


def test_it_goes_on_alike_and_reopens_alike(ran):
    finished = ran[0]
    assert finished.exact
    assert finished.report.written.full == finished.report.written.memory
    assert len(finished.report.reopened.here) == 64
    assert sum(len(bank) for bank in map(mx.open(finished.memory).__getitem__, (0, 1))) > 0


def test_the_report_is_written_and_shows_the_text(ran):
    page = ran[0].page.read_text("utf-8")
    assert "notes.txt" in page
    assert "{{" not in page
    assert f"{ran[0].report.full.bits_per_byte:.4f}" in page


def test_tokens_past_the_window_retrieve_and_those_before_do_not(ran):
    reading = ran[0].report.reading
    first = 16 + 4  # the first query whose forward pass began with an entry in the memory, by chunks of two
    assert not reading.passages.mass[:first].any()
    assert (reading.passages.mass[first + 2 :] > 0).all()
    assert (reading.passages.mass < 1).all()
    read = [(i, peak) for i, best in enumerate(reading.passages.by_token) for p in best for peak in p.peaks]
    assert read
    assert all(4 <= peak <= i - 16 for i, peak in read)
    assert math.isnan(reading.with_memory[0])


def test_every_task_is_finished_and_has_a_result(ran):
    diary = ran[1]
    assert diary.tasks
    assert diary.done == [total for _, total in diary.tasks]
    assert len(diary.results) == len(diary.tasks)


def test_an_altered_memory_answers_otherwise(ran, tmp_path):
    memory = mx.open(ran[0].memory)
    before = digest(memory)
    bank = memory[1]
    bank.write(np.ones((1, bank.heads, 1, bank.key_dim), np.float32), np.ones((1, bank.heads, 1, 8), np.float32))
    assert digest(memory) != before
    memory.save(tmp_path / "altered")
    assert digest_elsewhere(tmp_path / "altered") == digest(memory)


def test_tokens_are_counted_up_to_the_first_that_differs():
    assert n_equal(np.array([1, 2, 3]), np.array([1, 2, 3])) == 3
    assert n_equal(np.array([1, 2, 3]), np.array([1, 5, 3])) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"window": 0}, "window is 0"),
        ({"n_tokens": 0}, "tokens is 0"),
        ({"top_k": (8, -1)}, "top_k is -1"),
        ({"top_k": ()}, "top_k is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, says):
    with pytest.raises(ArgumentError, match=says):
        Settings(**changed)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="is a file: expected a folder"):
        Settings(out=tmp_path / "file")


@pytest.mark.parametrize(
    ("able", "name", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "Intel(R) Xeon(R)", torch.bfloat16),
        ({"avx512_bf16": True}, "Intel(R) Xeon(R)", torch.float32),
        ({"avx512_bf16": True}, "AMD EPYC 9B14", torch.bfloat16),
        ({"bf16": True, "architecture": "aarch64"}, "Neoverse-V2", torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, "AMD EPYC 7B13", torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_multiplies_it_fast(monkeypatch, able, name, dtype):
    monkeypatch.setattr("mnemex.doctor.processor", lambda: name)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert native_dtype() == dtype


def test_float32_is_chosen_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_dtype() == torch.float32
