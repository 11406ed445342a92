"""Tokenizer files for a package: each becomes one ``tokenizer.json``, read without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Tokens

from exporter.checkpoint.folder import Checkpoint
from exporter.drawing.text import Encode, prompt_encoder
from exporter.errors import InputError
from exporter.files.read import read_json
from exporter.package.manifest import Tokenizer

FOLDERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
# Contractions, runs of letters, single digits, runs of anything else (Radford et al. 2021).
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class TokenizerFile:
    """The text of a ``tokenizer.json`` and what the manifest says of it."""

    text: str
    entry: Tokenizer

    def encoder(self, name: str) -> Encode:
        """A function from a prompt to the ids of the text encoder ``name``."""
        return prompt_encoder(Tokens.from_str(self.text), self.entry, name)


def tokenizer_files(checkpoint: Checkpoint, tokens: Mapping[str, int]) -> dict[str, TokenizerFile]:
    """The tokenizer of each text encoder in ``tokens``, for as many tokens as that says.

    Raises InputError when a tokenizer's files are missing or damaged.
    """
    return {
        name: _tokenizer_file(checkpoint, name, tokens[name]) for name in FOLDERS if name in tokens
    }


def _tokenizer_file(checkpoint: Checkpoint, name: str, tokens: int) -> TokenizerFile:
    folder = checkpoint.tokenizer_folder(FOLDERS[name])
    ready = folder / "tokenizer.json"
    if ready.is_file():
        text = ready.read_text(encoding="utf-8")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        text = clip_tokenizer(folder).to_str(pretty=True) + "\n"
    else:
        raise InputError(
            f"{folder}: no tokenizer.json; load the tokenizer with transformers and save_pretrained"
        )
    try:
        parsed = Tokens.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{ready}: not a tokenizer: {error}") from None
    pad = _pad_token(folder)
    pad_id = parsed.token_to_id(pad)
    if pad_id is None:
        raise InputError(f"{folder}: pad token {pad!r} is not in the vocabulary")
    return TokenizerFile(text, Tokenizer(f"tokenizer/{name}.json", tokens, pad_id))


def clip_tokenizer(folder: Path) -> Tokens:
    """A CLIP tokenizer from ``vocab.json`` and ``merges.txt``, as transformers builds it.

    The padding token is special, in a prompt too: SD3's second tokenizer pads with "!".
    """
    vocabulary = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    merges = [(pair[0], pair[1]) for pair in pairs]
    tokens = Tokens(
        models.BPE(
            vocabulary,
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=CLIP_END,
        )
    )
    tokens.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens([CLIP_START, CLIP_END, _pad_token(folder)])
    start, end = vocabulary[CLIP_START], vocabulary[CLIP_END]
    tokens.post_processor = processors.RobertaProcessing(
        (CLIP_END, end), (CLIP_START, start), trim_offsets=False, add_prefix_space=False
    )
    return tokens


def _pad_token(folder: Path) -> str:
    """The padding token that ``tokenizer_config.json`` or ``special_tokens_map.json`` names."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            token: Any = read_json(folder / file).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    raise InputError(f"{folder}: no pad_token in tokenizer_config.json")
