"""GGUF headers: what a file says, and what is said of files that are damaged."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ModelFileError
from runtime.models.gguf_file import TENSOR_TYPES, read_gguf


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_token_list(["<|a|>", "b", "ü", "<tool_call>"])
    writer.add_token_types([3, 1, 1, 4])
    writer.add_token_scores([0.0, -1.5, 2.0, 0.0])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_says_what_the_library_wrote(small: Path) -> None:
    header = read_gguf(small)
    assert (header.architecture, header.context_tokens) == ("llama", 64)
    assert header.kv_values_per_token == 2 * 2 * (8 + 8)
    assert header.tokens == ["<|a|>", "b", "ü", "<tool_call>"]
    assert header.special_tokens == {"<|a|>": 0, "<tool_call>": 3}
    assert header.chat_template == "{{ messages }}"
    assert header.metadata["tokenizer.ggml.scores"] == [0.0, -1.5, 2.0, 0.0]
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    shapes = {t.name: (t.shape, t.type) for t in header.tensors}
    assert shapes["token_embd.weight"] == ((32, 4), "F32")
    assert shapes["output_norm.weight"] == ((32,), "F16")


def test_the_table_of_types_is_the_librarys() -> None:
    for number, (name, block_values, block_bytes) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block_values, block_bytes))


def test_a_file_cut_anywhere_is_refused(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    cut = tmp_path / "cut.gguf"
    # The last tensor's padding is no part of it.
    needed = len(whole.rstrip(b"\0")) - 1
    for length in [*range(64), *range(64, needed, 37), needed]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"truncated|not a GGUF"):
            read_gguf(cut)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_raises_one_typed_error_or_nothing(
    small: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        read_gguf(path)
    except ModelFileError as error:
        assert str(path) in str(error)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(ModelFileError, match="not a GGUF file: it begins with b'<htm'"):
        read_gguf(tmp_path / "page.gguf")
    with pytest.raises(ModelFileError, match="cannot read"):
        read_gguf(tmp_path / "missing.gguf")
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ModelFileError, match="version 1"):
        read_gguf(tmp_path / "old.gguf")
