"""8-bit floats, float64 and GGUF: equal to what libraries make of them; the rest is refused."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors.torch import save_file

from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.checkpoint.stored import read_stored
from exporter.errors import InputError
from tests import single_files
from tests.conftest import edit_json

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
ROWS, WIDTH = 6, 512
PLAIN = ("F32", "F16", "BF16")
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
OTHERS = ("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_S", "IQ1_M", "TQ1_0", "MXFP4")


def test_float64_is_rounded_once(tmp_path: Path) -> None:
    value = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    save_file({"a": value}, tmp_path / "x.safetensors")
    source = read_stored((tmp_path / "x.safetensors",))["a"]
    assert torch.equal(source.read(), value.float())
    assert torch.equal(source.between(1, 3).read(slice(2)), value.float()[1:3, :2])
    assert [t.dtype for t in source.raw()] == [torch.float32]


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("names", ["old", "new", "none"])
@pytest.mark.parametrize("scales", [(), (1,), (ROWS, 1), (ROWS,)])
def test_8_bit_floats(dtype: str, names: str, scales: tuple[int, ...], tmp_path: Path) -> None:
    weight = torch.randn(ROWS, WIDTH).to(FP8[dtype])
    scale = torch.rand(scales) + 0.5
    form = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}[dtype]
    note = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    beside = {
        "old": {"t.scaled_fp8": torch.ones(0).to(FP8[dtype]), "t.a.scale_weight": scale}
        | {"t.a.scale_input": torch.ones(())},
        "new": {
            "t.a.weight_scale": scale,
            "t.a.input_scale": torch.ones(()),
            "t.a.comfy_quant": note,
        },
        "none": {},
    }[names]
    save_file(
        {"t.a.weight": weight, "t.a.bias": torch.ones(ROWS), **beside}, tmp_path / "x.safetensors"
    )
    found = read_stored((tmp_path / "x.safetensors",))
    assert set(found) == {"t.a.weight", "t.a.bias"}
    expected = weight.float() * (scale.reshape(-1, 1) if beside else 1)
    assert torch.equal(found["t.a.weight"].read().float(), expected)
    part = found["t.a.weight"].between(2, 4)
    assert torch.equal(part.read(slice(3, 9)).float(), expected[2:4, 3:9])
    assert part.shape == (2, WIDTH)


def test_scaled_weights_are_those_of_their_values(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """The same checkpoint as one whose files hold the products in float32."""
    scaled, plain = {}, {}
    for key, value in single_files.mmdit(
        single_files.tensors_of(tiny_folder, "transformer")
    ).items():
        scaled[key] = plain[key] = value
        if key.endswith("qkv.weight"):
            scaled[key] = (value / 0.3).to(torch.float8_e4m3fn)
            scaled[key.replace("weight", "scale_weight")] = torch.tensor(0.3)
            plain[key] = scaled[key].float() * torch.tensor(0.3)
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    digests = []
    for name, saved in (("scaled", scaled), ("plain", plain)):
        save_file({k: v.contiguous() for k, v in saved.items()}, tmp_path / f"{name}.safetensors")
        part = {"transformer": str(tmp_path / f"{name}.safetensors")}
        digests.append(open_checkpoint(str(tiny_folder), parts=part).digest)
    assert digests[0] == digests[1] != tiny.digest


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a scale without a weight": (
        {"a.scale_weight": torch.ones(())},
        "tensor 'a.scale_weight' is the scale of 'a.weight', which is missing",
    ),
    "an input's scale without a weight": ({"a.input_scale": torch.ones(())}, "which is missing"),
    "scales of blocks": (
        {"a.weight": torch.ones(4, 4), "a.weight_scale": torch.ones(2, 2)},
        "tensor 'a.weight_scale' has shape [2, 2]; one factor, or one for each of the 4 rows",
    ),
    "another format": (
        {
            "a.weight": torch.ones(4, 4, dtype=torch.int8),
            "a.comfy_quant": torch.tensor(list(b'{"format": "int8_blockwise"}'), dtype=torch.uint8),
        },
        "tensor 'a.weight': unknown format 'int8_blockwise'; known: float8_e4m3fn, float8_e5m2",
    ),
    "a note that is none": (
        {"a.comfy_quant": torch.tensor(list(b"[1"), dtype=torch.uint8)},
        "tensor 'a.comfy_quant'",
    ),
    "nf4": (
        {"a.weight.quant_map": torch.ones(16), "a.weight": torch.ones(8, 1, dtype=torch.uint8)},
        "tensor 'a.weight.quant_map': 4-bit weights of bitsandbytes (nf4 or fp4) are not read",
    ),
    "svdquant": ({"a.wscales": torch.ones(4)}, "4-bit weights of Nunchaku (SVDQuant)"),
    "quanto": ({"a.weight._data": torch.ones(4)}, "integers of optimum-quanto"),
    "gptq": ({"a.qweight": torch.ones(4)}, "packed integers of GPTQ, AWQ or Nunchaku"),
    "nvfp4": ({"a.weight_scale_2": torch.ones(4)}, "4-bit floats of ModelOpt or ComfyUI (nvfp4)"),
    "blocks": ({"a.weight_scale_inv": torch.ones(4)}, "8-bit floats with a scale for each block"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_quantized_otherwise_is_refused(what: str, tmp_path: Path) -> None:
    tensors, said = REFUSED[what]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError) as error:
        read_stored((tmp_path / "x.safetensors",))
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path / "x.saf"))


def test_a_configuration_of_quantized_weights_is_refused(tiny_copy: Path) -> None:
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(tiny_copy / "transformer" / "config.json", quantization_config=how)
    with pytest.raises(InputError, match="quantization_config: bitsandbytes is not read"):
        open_checkpoint(str(tiny_copy))


def write_gguf(
    file: Path, tensors: dict[str, tuple[np.ndarray, str]], architecture: str = "sd3"
) -> Path:
    """A GGUF file of what is stored, each with the library's name for how."""
    writer = GGUFWriter(file, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.0])
    writer.add_bool("flag", True)
    writer.add_float64("number", 0.5)
    for key, (stored, kind) in tensors.items():
        writer.add_tensor(key, stored, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def stored_as(kind: str, shape: tuple[int, ...] = (ROWS, WIDTH)) -> np.ndarray:
    """Values as a kind stores them; bytes at random where the library cannot quantize."""
    value = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    try:
        return np.asarray(gguf.quants.quantize(value, GGMLQuantizationType[kind]))
    except NotImplementedError:
        values, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        drawn = np.random.default_rng(2).integers(0, 40, (*shape[:-1], shape[-1] // values * size))
        return drawn.astype(np.uint8)


@pytest.mark.parametrize("kind", (*PLAIN, *LEGACY, *K_QUANTS, *OTHERS))
def test_gguf_is_what_the_library_reads(kind: str, tmp_path: Path) -> None:
    tensors = {"one": (stored_as("F32", (5,)), "F32"), "two": (stored_as(kind), kind)}
    file = write_gguf(tmp_path / "x.gguf", tensors)
    found = read_stored((file,))
    for tensor in GGUFReader(file).tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        source = found[tensor.name]
        assert source.shape == tuple(reversed(tensor.shape.tolist())) == expected.shape
        np.testing.assert_array_equal(source.read().float().numpy(), expected)
    part = found["two"].between(1, 4)
    np.testing.assert_array_equal(part.read(slice(7)).float().numpy(), expected[1:4, :7])
    assert found["two"].read().dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(
        kind, torch.float32
    )


def as_gguf(tensors: single_files.Tensors, kind: str) -> dict[str, tuple[np.ndarray, str]]:
    """Matrices whose rows fit as a kind stores them, the rest in float32, as city96's tool does."""
    found = {}
    for key, value in tensors.items():
        array, its = value.float().numpy(), kind
        if value.ndim != 2 or value.shape[1] % 32:
            its = "F32"
        found[key] = (np.asarray(gguf.quants.quantize(array, GGMLQuantizationType[its])), its)
    return found


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_of_the_transformer_and_t5(
    kind: str, tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """The same checkpoint as one whose files hold the library's values in float32."""
    made = {
        "transformer": (single_files.mmdit, "sd3"),
        "text_encoder_3": (single_files.llama_t5, "t5encoder"),
    }
    packed, plain = {}, {}
    for name, (rename, architecture) in made.items():
        tensors = as_gguf(rename(single_files.tensors_of(tiny_folder, name)), kind)
        packed[name] = str(write_gguf(tmp_path / f"{name}.gguf", tensors, architecture))
        values = {
            key: torch.from_numpy(gguf.quants.dequantize(stored, GGMLQuantizationType[its]).copy())
            for key, (stored, its) in tensors.items()
        }
        if name == "transformer":
            save_file(values, tmp_path / f"{name}.safetensors")
            plain[name] = str(tmp_path / f"{name}.safetensors")
    opened = open_checkpoint(str(tiny_folder), parts=packed)
    same = opened.digest == tiny.digest
    assert same == (kind == "F32")
    other = open_checkpoint(str(tiny_folder), parts=plain).component("transformer")
    for key, source in other.tensors.items():
        assert torch.equal(opened.component("transformer").read(key), source.read())


def test_the_position_table_may_have_lost_its_first_axis(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    tensors = single_files.mmdit(single_files.tensors_of(tiny_folder, "transformer"))
    tensors["pos_embed"] = tensors["pos_embed"][0]
    file = write_gguf(tmp_path / "x.gguf", as_gguf(tensors, "F32"))
    opened = open_checkpoint(str(tiny_folder), parts={"transformer": str(file)})
    assert opened.digest == tiny.digest


def small_gguf(tmp_path: Path, architecture: str = "sd3") -> Path:
    return write_gguf(tmp_path / "x.gguf", {"a": (stored_as("Q8_0"), "Q8_0")}, architecture)


def put(content: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into(f"<{form}", content, at, value)


def after(content: bytearray, name: bytes) -> int:
    return content.index(name) + len(name)


DAMAGED: dict[str, tuple[Callable[[bytearray], Any], str]] = {
    "cut in its data": (lambda c: c.__delitem__(slice(-64, None)), "tensor 'a' lies past its end"),
    "cut in its header": (lambda c: c.__delitem__(slice(60, None)), "it ends within its header"),
    "too short": (lambda c: c.__delitem__(slice(2, None)), "too short"),
    "empty": (lambda c: c.clear(), "too short"),
    "of another kind": (lambda c: put(c, 0, "I", 1), "it does not begin with GGUF"),
    "of another version": (lambda c: put(c, 4, "I", 9), "version 9; known: 2, 3"),
    "of too many tensors": (lambda c: put(c, 8, "Q", 1 << 62), "it ends within its header"),
    "of too many entries": (lambda c: put(c, 16, "Q", 1 << 62), "it ends within its header"),
    "with an endless list": (
        lambda c: put(c, after(c, b"tokenizer.ggml.scores") + 8, "Q", 1 << 62),
        "it ends within its header",
    ),
    "with an endless text": (
        lambda c: put(c, after(c, b"general.architecture") + 4, "Q", 1 << 62),
        "it ends within its header",
    ),
    "with a value of no kind": (
        lambda c: put(c, after(c, b"flag"), "I", 77),
        "a value of unknown kind 77",
    ),
    "with a tensor of no axes": (
        lambda c: put(c, c.rindex(b"\x01\0\0\0\0\0\0\0a") + 9, "I", 0),
        "tensor 'a' has 0 axes",
    ),
    "with a tensor of no kind": (
        lambda c: put(c, c.rindex(b"\x01\0\0\0\0\0\0\0a") + 29, "I", 24),
        "tensor 'a': unknown kind '24'; known: BF16, F16, F32",
    ),
    "with a shape of no size": (
        lambda c: put(c, c.rindex(b"\x01\0\0\0\0\0\0\0a") + 13, "Q", 1 << 62),
        "tensor 'a' has shape [6, 4611686018427387904]",
    ),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_gguf_is_one_line(how: str, tmp_path: Path) -> None:
    file = small_gguf(tmp_path)
    content = bytearray(file.read_bytes())
    change, said = DAMAGED[how]
    change(content)
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_stored((file,))
    assert str(error.value).startswith(f"{file}: ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown architecture 'flux'; known: cow, pig, sd3"):
        read_stored((small_gguf(tmp_path, "flux"),))


def test_gguf_is_needed_for_gguf_alone(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small_gguf(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    open_checkpoint(str(tiny_folder))
    with pytest.raises(InputError, match=r"^gguf is not installed: pip install 'fourst"):
        read_stored((file,))
