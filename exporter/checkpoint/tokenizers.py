"""Tokenizer files for a package: each becomes one ``tokenizer.json``, read without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Tokens

from exporter.checkpoint.open import PAD_TOKENS, Checkpoint
from exporter.drawing.text import Encode, describe, prompt_encoder
from exporter.errors import InputError
from exporter.files.read import panics_as, read_json, read_text
from exporter.files.tokens import parse_tokenizer
from exporter.package.manifest import Tokenizer

# Of each text encoder: the folders of its tokenizer and of its weights.
FOLDERS = {
    "clip_l": ("tokenizer", "text_encoder"),
    "clip_g": ("tokenizer_2", "text_encoder_2"),
    "t5": ("tokenizer_3", "text_encoder_3"),
}
ADDED, CONFIG = "added_tokens.json", "tokenizer_config.json"
ANEW = "load the tokenizer with transformers and save_pretrained"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
MOST_IDS = 1 << 22
# Contractions, runs of letters, single digits, runs of anything else (Radford et al. 2021).
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class TokenizerFile:
    """The text of a ``tokenizer.json`` and what the manifest says of it."""

    text: str
    entry: Tokenizer

    def encoder(self, name: str) -> Encode:
        """A function from a prompt to the ids of the text encoder ``name``."""
        return prompt_encoder(parse_tokenizer(self.text, self.entry.path), self.entry, name)


def tokenizer_files(checkpoint: Checkpoint, tokens: Mapping[str, int]) -> dict[str, TokenizerFile]:
    """The tokenizer of each text encoder in ``tokens``, for as many tokens as that says.

    Raises InputError when a tokenizer's files are missing or damaged, or when it gives ids that the
    encoder's embedding has no row for.
    """
    return {
        name: _tokenizer_file(checkpoint, name, tokens[name]) for name in FOLDERS if name in tokens
    }


def _tokenizer_file(checkpoint: Checkpoint, name: str, tokens: int) -> TokenizerFile:
    tokenizer, encoder = FOLDERS[name]
    folder = checkpoint.tokenizer_folder(tokenizer)
    ready = folder / "tokenizer.json"
    if ready.is_file():
        text = read_text(ready)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        text = clip_tokenizer(folder).to_str(pretty=True) + "\n"
    else:
        raise InputError(f"{folder}: no tokenizer.json; {ANEW}")
    parsed = parse_tokenizer(text, ready)
    _refuse_unread(folder, parsed)
    pad = _pad_token(folder)
    pad_id = parsed.token_to_id(pad)
    if pad_id is None:
        raise InputError(f"{folder}: pad token {pad!r} is not in the vocabulary")
    described = describe(parsed, f"tokenizer/{name}.json", tokens, pad_id)
    embedding = checkpoint.component(encoder)
    rows = embedding.integer("vocab_size")
    if described.vocabulary_size > rows:
        raise InputError(
            f"{folder}: has ids up to {described.vocabulary_size - 1}, and the embedding of "
            f"{embedding.place} has {rows} rows; copy the tokenizer that belongs to it"
        )
    return TokenizerFile(text, described)


def _refuse_unread(folder: Path, tokens: Tokens) -> None:
    """Raise InputError for a token that was added to a vocabulary, and that its files leave out."""
    found: dict[str, dict[Any, Any]] = {}
    if (folder / ADDED).is_file():
        found[ADDED] = read_json(folder / ADDED)
    file = folder / CONFIG
    decoder = read_json(file).get("added_tokens_decoder") if file.is_file() else None
    if isinstance(decoder, dict):
        found[CONFIG] = {
            entry.get("content") if isinstance(entry, dict) else entry: number
            for number, entry in decoder.items()
        }
    for name, added in found.items():
        for token, number in added.items():
            if str(tokens.token_to_id(str(token))) != str(number):
                raise InputError(
                    f"{folder / name}: adds the token {token!r} with the id {number}, which the "
                    f"vocabulary has not; {ANEW}"
                )


def clip_tokenizer(folder: Path) -> Tokens:
    """A CLIP tokenizer from ``vocab.json`` and ``merges.txt``, as transformers builds it.

    The padding token is special, in a prompt too: SD3's second tokenizer pads with "!".
    """
    vocabulary = read_json(folder / "vocab.json")
    if not all(type(v) is int and 0 <= v < MOST_IDS for v in vocabulary.values()):
        raise InputError(f"{folder / 'vocab.json'}: ids from 0 to {MOST_IDS - 1} are expected")
    for token in (CLIP_START, CLIP_END):
        if token not in vocabulary:
            raise InputError(f"{folder / 'vocab.json'}: token {token!r} is missing")
    merges = _merges(folder / "merges.txt")
    with panics_as(lambda said: InputError(f"{folder / 'merges.txt'}: not a vocabulary's: {said}")):
        return _clip_tokens(vocabulary, merges, _pad_token(folder))


def _merges(file: Path) -> list[tuple[str, str]]:
    """The pairs of ``merges.txt``, one in a line, most frequent first."""
    merges = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip() and not line.startswith("#version"):
            pair = line.split()
            if len(pair) != 2:
                raise InputError(f"{file}, line {number}: two tokens are expected, as in 'a b'")
            merges.append((pair[0], pair[1]))
    return merges


def _clip_tokens(vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str) -> Tokens:
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
    tokens.add_special_tokens([CLIP_START, CLIP_END, pad])
    start, end = vocabulary[CLIP_START], vocabulary[CLIP_END]
    tokens.post_processor = processors.RobertaProcessing(
        (CLIP_END, end), (CLIP_START, start), trim_offsets=False, add_prefix_space=False
    )
    return tokens


def _pad_token(folder: Path) -> str:
    """The padding token that ``tokenizer_config.json`` or ``special_tokens_map.json`` names."""
    for file in PAD_TOKENS:
        if (folder / file).is_file():
            token: Any = read_json(folder / file).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    raise InputError(f"{folder}: no pad_token in tokenizer_config.json")
