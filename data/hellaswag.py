#!/usr/bin/env python3
"""Makes a file of examples of multiple choice, for train_gpt --eval-data, of HellaSwag's JSON lines.

    python3 data/hellaswag.py data/hellaswag_val.bin                 fetches the published validation set
    python3 data/hellaswag.py INPUT.jsonl OUTPUT.bin                 your own lines of this form
    python3 data/hellaswag.py INPUT.jsonl OUTPUT.bin --bytes         for models of bytes

A line is an object with "ctx", a text, "endings", 2 to 16 texts that may follow it, and "label", the
number of the right one, counted from 0. Other members are not read. The context's tokens are those of
"ctx", and a completion's those of a space and the ending; texts are taken as they are.

Tokens are GPT-2's, made by data/tokenize (run make before): it is here anyway, needs no package, and its
vocabulary is the one that the shards were made with. The file's format is described in docs/formats.md.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import urllib.error
import urllib.request

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
HERE = os.path.dirname(os.path.abspath(__file__))
MAGIC, VERSION, HEADER_WORDS = 20240522, 1, 256
TAG = 0x736B6F74  # the next three numbers of the header name the tokenizer
KINDS = {"bytes": 0, "gpt2": 1, "bpe": 2}  # as llmc/tokenizer_id.h numbers them
START, MOST_BYTES = 65535, 65534  # an example's first number; the most bytes of one
COMPLETIONS = range(2, 17)


class Problem(Exception):
    """Something that the user can mend."""


def check_text(text, what, where):
    if not isinstance(text, str):
        raise Problem(f"{where}: {what} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Problem(f"{where}: {what} has half of a surrogate pair, which is no character") from None
    if "\0" in text:
        raise Problem(f"{where}: {what} has a zero byte")
    return text


def read_example(line, where):
    """(context, completions, label) of a line."""
    try:
        value = json.loads(line)
    except ValueError as problem:
        raise Problem(f"{where}: not JSON: {problem}") from None
    if not isinstance(value, dict):
        raise Problem(f"{where}: not an object")
    missing = [key for key in ("ctx", "endings", "label") if key not in value]
    if missing:
        raise Problem(f"{where}: the object lacks {', '.join(missing)} (a set without labels cannot be used)")
    context, endings, label = check_text(value["ctx"], "ctx", where), value["endings"], value["label"]
    if not context:
        raise Problem(f"{where}: ctx is empty, so that nothing predicts the endings")
    if not isinstance(endings, list) or len(endings) not in COMPLETIONS:
        raise Problem(f"{where}: endings is not a list of {COMPLETIONS[0]} to {COMPLETIONS[-1]} texts")
    completions = [" " + check_text(ending, f"ending {k}", where) for k, ending in enumerate(endings)]
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(endings):
        raise Problem(f"{where}: the label is {json.dumps(label)}, and endings are numbered 0 to {len(endings) - 1}")
    return context, completions, label


def read_examples(text, name):
    examples, places = [], []
    for number, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            examples.append(read_example(line, f"{name}: line {number}"))
            places.append(f"{name}: line {number}")
    if not examples:
        raise Problem(f"{name}: there are no lines")
    return examples, places


def fetch():
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            return answer.read()
    except (OSError, urllib.error.URLError) as problem:
        raise Problem(
            f"cannot fetch {URL}: {problem}; fetch it elsewhere and give it: hellaswag.py INPUT.jsonl OUTPUT.bin"
        ) from None


def tokens_of_bytes(texts):
    return "bytes", [list(text.encode()) for text in texts]


def tokens_of_gpt2(texts, encoder, bpe):
    """The tokenizer's name and the tokens of each text, by data/tokenize."""
    program = os.path.join(HERE, "tokenize")
    if not os.access(program, os.X_OK):
        raise Problem(f"there is no {program}: run make in {os.path.dirname(HERE)} first")
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run(
        [program, "--texts", "-", "--output", "-", f"--encoder={encoder}", f"--bpe={bpe}"],
        input=lines.encode(), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        raise Problem(f"data/tokenize: {words.removeprefix('error: ')}")
    name, *rows = done.stdout.decode().split("\n")[:-1]
    if len(rows) != len(texts):
        raise Problem(f"data/tokenize gave {len(rows)} lines for {len(texts)} texts")
    return name, [[int(word) for word in row.split()] for row in rows]


def example_bytes(index, context, completions, label, where):
    words = [START, 0, index % 65536, label, len(completions)]
    for tokens in (context, *completions):
        words += [len(tokens), *tokens]
    if 2 * len(words) > MOST_BYTES:
        raise Problem(f"{where}: the example takes {2 * len(words)} bytes, and the format allows {MOST_BYTES}")
    words[1] = 2 * len(words)
    return struct.pack(f"<{len(words)}H", *words)


def file_bytes(examples, places, tokens, tokenizer):
    """The file; `tokens` has those of each example's context and completions, in this order."""
    rows = iter(tokens)
    parts = []
    for index, (_, completions, label) in enumerate(examples):
        context = next(rows)
        parts.append(example_bytes(index, context, [next(rows) for _ in completions], label, places[index]))
    kind, _, fingerprint = tokenizer.partition(" ")
    number = int(fingerprint or "0", 16)
    header = [MAGIC, VERSION, len(parts), max(map(len, parts)), TAG, KINDS[kind], number & 0xFFFFFFFF, number >> 32]
    header += [0] * (HEADER_WORDS - len(header))
    return struct.pack(f"<{HEADER_WORDS}I", *header) + b"".join(parts)


def write(path, data):
    """Replaces a file: a reader sees the old one or the new one."""
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise Problem(f"cannot write {path}: {problem.strerror}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE",
                        help="INPUT.jsonl and OUTPUT.bin; with OUTPUT.bin alone the published set is fetched")  # fmt: skip
    parser.add_argument("--bytes", action="store_true", help="tokens are bytes, for models of text")
    parser.add_argument("--encoder", default=os.path.join(HERE, "gpt2-bpe", "encoder.json"),
                        help="vocabulary; data/gpt2_bpe.sh fetches it")  # fmt: skip
    parser.add_argument("--bpe", default=os.path.join(HERE, "gpt2-bpe", "vocab.bpe"), help="its merges")
    arguments = parser.parse_args()
    if len(arguments.files) > 2:
        parser.error("give INPUT.jsonl and OUTPUT.bin")
    return arguments


def make(arguments):
    *given, output = arguments.files
    if not given and output.endswith((".jsonl", ".json")):
        raise Problem(f"{output} is where the examples would be written: give INPUT.jsonl and OUTPUT.bin")
    name = given[0] if given else URL
    if given:
        try:
            with open(name, "rb") as f:
                text = f.read()
        except OSError as problem:
            raise Problem(f"cannot open {name}: {problem.strerror}") from None
    else:
        text = fetch()
    examples, places = read_examples(text, name)
    texts = [part for context, completions, _ in examples for part in (context, *completions)]
    if arguments.bytes:
        tokenizer, tokens = tokens_of_bytes(texts)
    else:
        tokenizer, tokens = tokens_of_gpt2(texts, arguments.encoder, arguments.bpe)
    data = file_bytes(examples, places, tokens, tokenizer)
    write(output, data)
    print(f"{output}: {len(examples)} examples, {sum(map(len, tokens))} tokens ({tokenizer}), {len(data)} bytes")


def main():
    try:
        make(parse_arguments())
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
