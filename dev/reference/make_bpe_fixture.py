"""Writes the small BPE that dev/test/test_tokenizer.c checks llmc/tokenizer.h against.

    data/gpt2_bpe.sh && python3 dev/reference/make_bpe_fixture.py [data/gpt2-bpe]

dev/test/fixtures/bpe/ gets the first 500 merges of GPT-2 (vocab.bpe), a vocabulary of the 256
bytes, these 500 tokens and <|endoftext|> (encoder.json), and expected.txt: a line per string, its
bytes in hexadecimal ("-" when empty), a tab, its token ids. The ids come from the slow and obvious
algorithm below and the `regex` module (pip install regex), which share no code with the C.
Bytes that are not UTF-8 are surrogate escapes here, that is, characters of no class.
"""
import json
import pathlib
import sys

import regex

MERGES = 500
WORDS = regex.compile(
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")

STRINGS = [
    "", "a", " ", "  ", "\n", "Hello world", "the theory of the thing", " the", "  the", "the  ",
    # white space before a word, at the end, and of every kind
    "a b", "a  b", "a   b", "a\nb", "a\n\nb", "a\n \nb", "a \n b", "\t\tint x;\r\n\treturn;\r\n",
    "end of text   ", "end of text\n\n\n", "a\u00a0b", "a\u00a0 b", "\u3000\u3000wide", "x\u2003 y",
    "a\u0085b", "a\x1cb", "a\u200bb", " \u200b ", "\ufeffbom",
    # contractions
    "I'm you're he's it'll they've we'd don't", "'s 't 're 've 'm 'll 'd", "I'M YOU'RE",
    "rock'n'roll",
    "''s '''t", "a 's", "'", "' ", "'r", "'l", "'v", "l'été", "\u2019s don\u2019t", "'sing 'then",
    # numbers and signs
    "3.14159 and 2,718", " 1234567890", "x1y22z333", "²½Ⅷ٣४", "a+b=c; (d)*[e]!?", "... --- ===",
    "$100 #1 @you 50%", "http://example.org/a_b?c=d&e", " !  !!   !!!",
    # 's is a word of its own behind letters, numbers and spaces, but not behind other characters
    "5's ٣'s ²'s Ⅷ's 𝟘's", "中's é's 𝒜's ª's", "\u3000's \u2003's", "€'s 👍's \u0301's _'s",
    # other scripts, emoji, characters above U+FFFF
    "Ωmega αβγ", "Привет, мир! 123", "naïve café e\u0301", "日本語 テキスト。", "한국어 텍스트", "हिन्दी में",
    "العربية ١٢٣", "👍 👩\u200d👩\u200d👧 🇺🇸x", "𝟘𝟙 𝒜bc 𠀀", "\U0010ffff\ufffd\ue000", "a\x00b\x00",
    # what looks like a special token is text
    "a<|endoftext|>b", "the the the in in in an an er er on on re re at at",
    " " * 40 + "x", "th" * 40,
    # bytes that are not UTF-8: stray, truncated, overlong, surrogate, too large
    b"a\x80b", b"\xff\xfe the", b"caf\xc3", b"\xe2\x82", b"\xe2\x82 the", b"\xc0\xafx",
    b"\xe0\x80\xaf",
    b"\xe0\x81\x81's", b"\xf0\x80\x80\xb1's", b"\xc1\x81's", b"\xed\xbf\xbf's",
    b"\xed\xa0\x80z", b"\xf4\x90\x80\x80", b"\xf5'\xf5's", b" \xe4\xb8 \xe4\xb8\xad",
    b"\xf0\x9f\x91",
    bytes(range(256)),
]


def byte_alphabet():
    """byte -> the character GPT-2's files write for it"""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, others = {b: chr(b) for b in own}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + others)
            others += 1
    return table


def encode(data, rank, ids):
    out = []
    for word in WORDS.findall(data.decode("utf-8", "surrogateescape")):
        parts = [bytes([b]) for b in word.encode("utf-8", "surrogateescape")]
        while True:
            pairs = [rank.get(pair, MERGES) for pair in zip(parts, parts[1:])]
            best = min(pairs, default=MERGES)
            if best == MERGES:
                break
            i = pairs.index(best)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        out += [ids[p] for p in parts]
    return out


source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "data/gpt2-bpe")
target = pathlib.Path(__file__).parent.parent / "test/fixtures/bpe"
to_char = byte_alphabet()
to_byte = {c: b for b, c in to_char.items()}
lines = (source / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:MERGES + 1]
merges = [tuple(bytes(to_byte[c] for c in half) for half in line.split(" ")) for line in lines]

first = json.loads((source / "encoder.json").read_text(encoding="utf-8"))
single = sorted((to_char[b] for b in range(256)), key=first.__getitem__)  # GPT-2's order of bytes
names = single + [line.replace(" ", "") for line in lines] + ["<|endoftext|>"]
vocabulary = {name: i for i, name in enumerate(names)}
ids = {bytes(to_byte[c] for c in name): i for name, i in vocabulary.items()}
rank = {pair: i for i, pair in enumerate(merges)}

target.mkdir(parents=True, exist_ok=True)
(target / "encoder.json").write_text(json.dumps(vocabulary) + "\n")
(target / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
with open(target / "expected.txt", "w") as f:
    for s in STRINGS:
        data = s.encode("utf-8") if isinstance(s, str) else s
        f.write((data.hex() or "-") + "\t" + " ".join(map(str, encode(data, rank, ids))) + "\n")
print(f"{len(STRINGS)} strings, {len(names)} tokens: {target}")
