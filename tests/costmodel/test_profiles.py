"""Profiles: every shipped number is plausible and sourced; wrong files are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from costmodel.errors import ProfileError
from costmodel.hardware import hardware_names, load_hardware
from costmodel.links import link_names, load_link
from costmodel.model_config import model_from_config
from costmodel.models import load_model, model_names
from costmodel.profile_file import PROFILES
from costmodel.profile_writer import write_hardware

ISSUED_HARDWARE = (
    "a100-40gb", "a100-80gb", "h100-pcie", "h100-sxm", "h200", "a6000", "rtx-4090", "v100", "h20",
    "b200", "l40s", "laptop-cpu", "orin-nano", "edgecim",
)  # fmt: skip
ISSUED_MODELS = (
    "llama-3.1-8b", "llama-3.1-70b", "llama-13b", "llama-33b", "qwen2.5-7b", "qwen3-32b",
    "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b", "gpt-oss-120b", "glm-4.5", "smollm2-135m",
)  # fmt: skip


@pytest.mark.parametrize("name", hardware_names())
def test_hardware_is_plausible(name: str) -> None:
    hardware = load_hardware(name)
    intensity = max(hardware.peak_flops_per_s.values()) / hardware.memory_bytes_per_s
    assert 5 < intensity < 5000, "FLOP per byte"
    assert 1e9 < hardware.memory_bytes < 1e12
    assert 1e9 < hardware.memory_bytes_per_s < 2e13
    assert hardware.power_w > hardware.idle_power_w >= 0
    for (dtype, kind), peak in hardware.peak_flops_per_s.items():
        if kind == "sparse":
            assert peak <= 2.03 * hardware.peak(dtype, "dense")
    assert all(evidence.source for evidence in hardware.evidence.values())
    assert hardware.grade_of("compute_efficiency") in ("fitted", "assumed")


@pytest.mark.parametrize("name", model_names())
def test_models_have_the_printed_number_of_parameters(name: str) -> None:
    model = load_model(name)
    if model.printed_params is None:
        pytest.skip("no printed number")
    tolerance = 0.04 if name == "sheared-llama-1.3b" else 0.01
    assert model.params == pytest.approx(model.printed_params, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "tables_counted"),
    [
        ("qwen3-30b-a3b", 2), ("qwen3-235b-a22b", 2), ("glm-4.5", 0), ("deepseek-v3", 1),
        ("gpt-oss-20b", 1), ("gpt-oss-120b", 1),
    ],
)  # fmt: skip
def test_active_parameters_as_printed(name: str, tables_counted: int) -> None:
    # Model cards differ in whether embeddings and the head count as active.
    model = load_model(name)
    assert model.printed_active_params is not None
    active = model.active_non_embedding_params + tables_counted * model.embedding_params
    assert active == pytest.approx(model.printed_active_params, rel=0.02)


def test_all_issued_profiles_exist() -> None:
    assert set(ISSUED_HARDWARE) <= set(hardware_names())
    assert set(ISSUED_MODELS) <= set(model_names())
    assert {"pcie5-x16", "nvlink4", "ethernet-10g", "ethernet-100g", "host-memory"} <= set(
        link_names()
    )


def test_every_profile_file_is_read() -> None:
    read = set(hardware_names()) | set(model_names()) | set(link_names())
    assert {path.stem for path in PROFILES.rglob("*.toml")} == read
    for name in link_names():
        link = load_link(name)
        assert 0 < link.bytes_per_s <= link.peak_bytes_per_s


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("Qwen2.5-7B-Instruct", 57344), ("Qwen3-32B", 262144), ("Llama-3.1-8B-Instruct", 131072),
        ("Qwen3-30B-A3B", 98304), ("GLM-4.5", 376832), ("gpt-oss-120b", 73728),
        ("DeepSeek-V3.1-Terminus", 70272),
    ],
)  # fmt: skip
def test_kv_bytes_of_known_models(name: str, kv_bytes: int) -> None:
    assert load_model(name).kv_bytes_per_token == kv_bytes


def test_windows_keep_fewer_bytes() -> None:
    assert load_model("gpt-oss-120b").kv_bytes_per_token_beyond_window == 36864


def test_names_and_nearest_names() -> None:
    assert load_model("meta-llama/Llama-3.1-8B-Instruct").name == "llama-3.1-8b"
    assert load_hardware("H100").name == "h100-sxm"
    assert load_link("10gbe").name == "ethernet-10g"
    with pytest.raises(ProfileError, match=r"did you mean 'h200'.*h100-sxm"):
        load_hardware("h200x")
    with pytest.raises(ProfileError, match="did you mean 'qwen3-8b'"):
        load_model("qwen3-8bb")
    with pytest.raises(ProfileError, match="nvlink4"):
        load_link("nvlinks")


def test_missing_peak_names_what_is_there() -> None:
    with pytest.raises(ProfileError, match=r"no dense peak for 'fp8'.*fp16"):
        load_hardware("v100").peak("fp8")
    assert load_hardware("v100").peak("bf16") == load_hardware("v100").peak("fp16")


# --- wrong files ---------------------------------------------------------------------------------


def changed(tmp_path: Path, kind: str, name: str, old: str, new: str) -> Path:
    text = (PROFILES / kind / f"{name}.toml").read_text("utf-8")
    assert old in text
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace(old, new), "utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        ("memory_bytes = 141e9\n", "", "memory_bytes", "is missing"),
        ("memory_bytes = 141e9", "memory_byte = 141e9", "memory_bytes", "did you mean"),
        ("memory_bytes = 141e9", "memory_bytes = -1", "memory_bytes", "above 0"),
        ("memory_bytes = 141e9", 'memory_bytes = "large"', "memory_bytes", "must be a number"),
        ("memory_bytes = 141e9", "memory_bytes = nan", "memory_bytes", "finite"),
        ("memory_bytes = 141e9", "memory_bytes = 141e9\ncolour = 3", "colour", "unknown"),
        ('kind = "gpu"', 'kind = "tpu"', "kind", "the kinds are"),
        ("sparse = 1979e12", "sparse = 1e12", "peak_flops_per_s.bf16.sparse", "below the dense"),
        ("[peak_flops_per_s.tf32]", "[peak_flops_per_s.bf17]", "peak_flops_per_s.bf17", "no dtype"),
        ('grade = "fitted"', 'grade = "guessed"', "compute_efficiency", "the grades are"),
        ("power_w = 700", "power_w = 50", "idle_power_w", "above power_w"),
        ('source = "NVIDIA H200 data sheet"\n', "", "source", "is missing"),
    ],
)
def test_wrong_hardware_names_file_and_field(
    tmp_path: Path, old: str, new: str, field: str, problem: str
) -> None:
    path = changed(tmp_path, "hardware", "h200", old, new)
    with pytest.raises(ProfileError, match=problem) as raised:
        load_hardware(path)
    assert str(path) in str(raised.value)
    assert (raised.value.file, raised.value.field) == (str(path), field)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("n_kv_heads = 8", "n_kv_heads = 7", "n_kv_heads"),
        ("n_layers = 32", "n_layers = 0", "n_layers"),
        ("n_layers = 32", "n_layers = 2.5", "n_layers"),
        ("mlp_matrices = 3", "mlp_matrices = 4", "mlp_matrices"),
        ("d_ff = 14336", "", "d_ff"),
    ],
)
def test_wrong_models_name_file_and_field(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = changed(tmp_path, "models", "llama-3.1-8b", old, new)
    with pytest.raises(ProfileError) as raised:
        load_model(path)
    assert (raised.value.file, raised.value.field) == (str(path), field)


def test_a_curve_must_rise_in_tokens(tmp_path: Path) -> None:
    path = changed(tmp_path, "hardware", "a6000", "[256, 0.6016]", "[64, 0.6016]")
    with pytest.raises(ProfileError, match="tokens must rise"):
        load_hardware(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot read"):
        load_hardware(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("a = ", "utf-8")
    with pytest.raises(ProfileError, match="not TOML"):
        load_hardware(tmp_path / "broken.toml")


# --- config.json ---------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip


def config(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "config.json"
    merged = {k: v for k, v in {**LLAMA, **values}.items() if v is not ...}
    path.write_text(json.dumps(merged), "utf-8")
    return path


def test_a_config_gives_the_shipped_profile(tmp_path: Path) -> None:
    model, shipped = model_from_config(config(tmp_path)), load_model("llama-3.1-8b")
    assert model.params == shipped.params
    assert model.kv_bytes_per_token == shipped.kv_bytes_per_token
    assert load_model(tmp_path).params == shipped.params


def test_experts_windows_and_latents_of_configs(tmp_path: Path) -> None:
    oss = model_from_config(
        config(
            tmp_path, model_type="gpt_oss", hidden_size=2880, num_attention_heads=64,
            num_hidden_layers=24, head_dim=64, intermediate_size=2880, vocab_size=201088,
            num_local_experts=32, num_experts_per_tok=4, sliding_window=128,
            layer_types=["sliding_attention", "full_attention"] * 12, attention_bias=True,
            quantization_config={"quant_method": "mxfp4"},
        )
    )  # fmt: skip
    shipped = load_model("gpt-oss-20b")
    assert (oss.params, oss.weight_bytes) == (shipped.params, shipped.weight_bytes)
    assert oss.kinds == shipped.kinds
    deepseek = model_from_config(
        config(
            tmp_path, model_type="deepseek_v3", hidden_size=7168, num_attention_heads=128,
            num_hidden_layers=61, num_key_value_heads=128, intermediate_size=18432,
            vocab_size=129280, n_routed_experts=256, num_experts_per_tok=8, n_shared_experts=1,
            moe_intermediate_size=2048, first_k_dense_replace=3, kv_lora_rank=512,
            q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
            quantization_config={"quant_method": "fp8"}, head_dim=64,
        )
    )  # fmt: skip
    assert deepseek.params == load_model("deepseek-v3").params
    assert deepseek.kv_bytes_per_token == 70272


def test_a_window_that_is_switched_off_does_not_count(tmp_path: Path) -> None:
    qwen = model_from_config(
        config(tmp_path, model_type="qwen2", sliding_window=4096, use_sliding_window=False)
    )
    assert qwen.window_tokens == 0
    assert qwen.qkv_bias


@pytest.mark.parametrize(
    ("values", "field", "problem"),
    [
        ({"model_type": "llamma"}, "model_type", "did you mean 'llama'"),
        ({"model_type": "mamba9"}, "model_type", "not known"),
        ({"hidden_size": ...}, "hidden_size", "is missing"),
        ({"hidden_size": -4}, "hidden_size", "at least 0"),
        ({"num_attention_heads": 0}, "num_attention_heads", "at least 1"),
        ({"num_key_value_heads": 5}, "n_kv_heads", "must divide"),
        ({"torch_dtype": "float12"}, "torch_dtype", "not known"),
        ({"layer_types": ["full_attention"]}, "layer_types", "1 entries for 32"),
        ({"layer_types": ["ring"] * 32}, "layer_types", "known are"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config", "no bits"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "true or false"),
    ],
)
def test_wrong_configs_name_file_and_field(
    tmp_path: Path, values: dict[str, Any], field: str, problem: str
) -> None:
    path = config(tmp_path, **values)
    with pytest.raises(ProfileError, match=problem) as raised:
        model_from_config(path)
    assert (raised.value.file, raised.value.field) == (str(path), field)


def test_configs_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, problem in (("[]", "JSON object"), ("{", "not JSON")):
        path.write_text(text, "utf-8")
        with pytest.raises(ProfileError, match=problem):
            model_from_config(path)
    with pytest.raises(ProfileError, match="cannot read"):
        model_from_config(tmp_path / "absent.json")


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h200", "a6000", "edgecim"])
def test_a_written_profile_reads_back_equal(tmp_path: Path, name: str) -> None:
    hardware = load_hardware(name)
    path = tmp_path / f"{name}.toml"
    write_hardware(hardware, path, "a test")
    read = load_hardware(path)
    assert read.peak_flops_per_s == hardware.peak_flops_per_s
    assert read.compute_efficiency == hardware.compute_efficiency
    assert read.kernel_efficiency == hardware.kernel_efficiency
    assert (read.power_w, read.tile_tokens) == (hardware.power_w, hardware.tile_tokens)
    assert read.evidence["memory_bytes"] == hardware.evidence["memory_bytes"]
    assert read.batch_scales_decode == hardware.batch_scales_decode
