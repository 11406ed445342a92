"""Tokenizers as OpenVINO models, for devices that run nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as Tokens

from exporter.backends.openvino.writer import save
from exporter.files.tokens import parse_tokenizer, read_tokenizer
from exporter.package.manifest import Tokenizer


def write_tokenizer(folder: Path, name: str, entry: Tokenizer) -> tuple[Path, Path]:
    """Write ``tokenizer/<name>.xml`` and ``.bin`` from the package's ``tokenizer.json``.

    The model takes one string, ``prompt``, and gives ``input_ids`` (1, tokens) int64, padded, cut
    and with special tokens as the runtime does it. It needs the openvino-tokenizers extension.
    """
    file = folder / entry.path
    return _save(_convert(read_tokenizer(file), entry), folder / "tokenizer" / f"{name}.xml")


def write_client_tokenizer(text: str, entry: Tokenizer, folder: Path) -> tuple[Path, Path]:
    """Write ``openvino_tokenizer.xml`` and ``.bin`` of a ``tokenizer.json``'s text, as GenAI asks.

    GenAI finds the padding's id in the model's notes.
    """
    model = _convert(parse_tokenizer(text, folder), entry)
    model.set_rt_info(str(entry.pad_id), "pad_token_id")
    return _save(model, folder / "openvino_tokenizer.xml")


def _save(model: Any, file: Path) -> tuple[Path, Path]:
    for i, operator in enumerate(model.get_ordered_ops()):
        operator.set_friendly_name(f"{operator.get_type_name().lower()}_{i}")
    model.input(0).get_tensor().set_names({"prompt"})  # the converter's holds a running number
    return save(model, file)


def _convert(tokens: Tokens, entry: Tokenizer) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from openvino_tokenizers import convert_tokenizer
        from openvino_tokenizers.tokenizer_pipeline import BPETokenizationStep
        from transformers import PreTrainedTokenizerFast

        if "WhitespaceSplit" in str(tokens.pre_tokenizer):
            # The converter splits at spaces only: make every white space one, and none at the ends.
            spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
            own = [] if tokens.normalizer is None else [tokens.normalizer]
            tokens.normalizer = normalizers.Sequence([*own, *spaces])
        special = [t.content for t in tokens.get_added_tokens_decoder().values() if t.special]
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=tokens,
            pad_token=tokens.id_to_token(entry.pad_id),
            additional_special_tokens=special,
            model_max_length=entry.tokens,
        )
        with mock.patch.object(BPETokenizationStep, "from_hf_json", _bpe(BPETokenizationStep)):
            return convert_tokenizer(
                wrapped, use_max_padding=True, truncation=True, max_length=entry.tokens
            )


def _bpe(step: Any) -> Callable[[Any], Any]:
    """The converter's byte-pair step with special tokens that end words.

    OpenVINO appends CLIP's end-of-word suffix to a special token before it looks it up, and does
    not find it: '!', which is CLIP-G's padding and a common character, would get another id.
    """
    original = step.from_hf_json

    def from_hf_json(parsed: Any) -> Any:
        made = original(parsed)
        suffix = made.end_suffix
        if suffix:
            special = {token["content"] + suffix: token["id"] for token in parsed["added_tokens"]}
            made.added_tokens = {**made.added_tokens, **special}
            made.vocab = [*made.vocab]
            for text in special:
                if text in made.vocab:
                    made.vocab[made.vocab.index(text)] = f"{text}{suffix}"
        return made

    return from_hf_json
