"""Byte-level BPE behind the kimi-k2 pre-tokenizer. Run it to learn the merges anew: `python tokenizer.py`.

Digits are never merged: every digit is a token, so that counting is arithmetic on digits and not on chunks.
"""

import collections
import functools
import json
import pathlib
import random

import regex

import corpus

VOCABULARY = 512
SPECIAL = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "[PAD]"]
MERGES_FILE = pathlib.Path(__file__).with_name("merges.json")

# Kimi's own split: runs of Han, words that break where case does, up to three digits, punctuation, line ends, spaces.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PIECES = regex.compile(
    "|".join(
        [
            r"[\p{Han}]+",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    ),
    regex.V1,
)
_SPECIALS = regex.compile("(" + "|".join(map(regex.escape, SPECIAL)) + ")")


def _byte_characters():
    """GPT-2's printable stand-in for every byte: visible Latin-1 stands for itself, the rest follow from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def _characters(piece):
    return tuple(BYTE_CHARACTERS[byte] for byte in piece.encode())


def _merge(word, pair):
    merged, at = [], 0
    while at < len(word):
        if word[at : at + 2] == pair:
            merged.append(word[at] + word[at + 1])
            at += 2
        else:
            merged.append(word[at])
            at += 1
    return tuple(merged)


def learn_merges(count, documents=4000, seed=1):
    rng = random.Random(seed)
    words = collections.Counter()
    for _ in range(documents):
        text = "".join(text for text, _ in corpus.document(rng))
        for part in _SPECIALS.split(text):
            if part not in SPECIAL:
                words.update(_characters(p) for p in PIECES.findall(part) if not regex.search(r"\p{N}", p))
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = collections.Counter({_merge(word, best): times for word, times in words.items()})
    return merges


class Tokenizer:
    def __init__(self, merges_file=MERGES_FILE):
        self.merges = [tuple(line.split(" ")) for line in json.loads(pathlib.Path(merges_file).read_text())]
        self.tokens = [*BYTE_CHARACTERS.values(), *(a + b for a, b in self.merges), *SPECIAL]
        assert len(set(self.tokens)) == VOCABULARY, "the merges must be distinct and fill the vocabulary"
        self.ids = {token: n for n, token in enumerate(self.tokens)}
        self._rank = {pair: n for n, pair in enumerate(self.merges)}
        self._piece = functools.lru_cache(65536)(self._piece)

    def _piece(self, piece):
        word = _characters(piece)
        while pairs := [pair for pair in zip(word, word[1:]) if pair in self._rank]:
            word = _merge(word, min(pairs, key=self._rank.__getitem__))
        return [self.ids[token] for token in word]

    def encode(self, text):
        ids = []
        for part in _SPECIALS.split(text):
            if part in SPECIAL:
                ids.append(self.ids[part])
            else:
                for piece in PIECES.findall(part):
                    ids += self._piece(piece)
        return ids

    def decode(self, ids):
        spelled = (self.tokens[n] for n in ids)
        return b"".join(
            t.encode() if t in SPECIAL else bytes(CHARACTER_BYTES[c] for c in t) for t in spelled
        ).decode("utf-8", "replace")


if __name__ == "__main__":
    learned = learn_merges(VOCABULARY - 256 - len(SPECIAL))
    MERGES_FILE.write_text(json.dumps([f"{a} {b}" for a, b in learned], ensure_ascii=False, indent=0) + "\n")
