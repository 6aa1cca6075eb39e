#!/usr/bin/env python3
"""Tests of data/hellaswag.py on invented examples. They need data/tokenize, which make builds.

usage: test_scripts_hellaswag.py [NAME...]    runs the tests whose names begin with a NAME, or all
"""

import contextlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import types
import unittest
import unittest.mock

import script_tests

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, "data", "hellaswag.py")
sys.path.insert(0, os.path.dirname(SCRIPT))
import hellaswag

FIXTURES = os.path.join(ROOT, "dev", "test", "fixtures")
EXAMPLES = os.path.join(FIXTURES, "examples.jsonl")
ENCODER, BPE = (os.path.join(FIXTURES, "bpe", name) for name in ("encoder.json", "vocab.bpe"))
VOCABULARY = [f"--encoder={ENCODER}", f"--bpe={BPE}"]


def read_lines(path=EXAMPLES):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def read_file(path):
    """(header, [(index, label, context, completions)]), with lists of tokens."""
    with open(path, "rb") as f:
        data = f.read()
    header, examples, at = struct.unpack_from("<256I", data), [], 1024
    while at < len(data):
        start, size = struct.unpack_from("<2H", data, at)
        words = struct.unpack_from(f"<{size // 2}H", data, at)
        assert start == 65535 and size % 2 == 0
        lists, next_ = [], 5
        while next_ < len(words):
            lists.append(list(words[next_ + 1 : next_ + 1 + words[next_]]))
            next_ += 1 + words[next_]
        assert next_ == len(words) and len(lists) == 1 + words[4]
        examples.append((words[2], words[3], lists[0], lists[1:]))
        at += size
    return header, examples


def token_texts():
    """The bytes of each token of the fixture, by GPT-2's table of characters."""
    itself = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in itself]
    byte_of = {chr(b): b for b in itself} | {chr(256 + i): b for i, b in enumerate(others)}
    with open(ENCODER, encoding="utf-8") as f:
        return {number: bytes(byte_of[c] for c in name) for name, number in json.load(f).items() if name[0] != "<"}


class HellaSwag(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.output = os.path.join(self.folder, "out.bin")

    def run_program(self, *arguments, env=None):
        """As users start it."""
        return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=env, check=False)

    def run_script(self, *arguments):
        """The same in this process, which is quicker."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            unittest.mock.patch.object(sys, "argv", [SCRIPT, *arguments]),
        ):
            status = hellaswag.main()
        return types.SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())

    def make(self, *arguments):
        done = self.run_script(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.listdir(self.folder), ["out.bin"])
        return read_file(self.output)

    def write(self, text):
        path = os.path.join(self.folder, "in.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def refused(self, text, pattern, *arguments):
        done = self.run_script(self.write(text), self.output, "--bytes", *arguments)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertRegex(done.stderr, f"^error: .*{pattern}")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(os.listdir(self.folder), ["in.jsonl"])

    def check_header(self, header, examples, kind, fingerprint):
        sizes = [2 * (6 + len(context) + sum(1 + len(c) for c in rows)) for _, _, context, rows in examples]
        self.assertEqual(header[:4], (20240522, 1, len(examples), max(sizes)))
        self.assertEqual(header[4:8], (0x736B6F74, kind, fingerprint & 0xFFFFFFFF, fingerprint >> 32))
        self.assertFalse(any(header[8:]))
        self.assertEqual([index for index, *_ in examples], list(range(len(examples))))

    def test_bytes(self):
        """The texts come back, with a space before each ending."""
        header, examples = self.make(EXAMPLES, self.output, "--bytes")
        self.check_header(header, examples, 0, 0)
        lines = read_lines()
        self.assertEqual(len(lines), 12)
        for line, (_, label, context, completions) in zip(lines, examples, strict=True):
            self.assertEqual(label, line["label"])
            self.assertEqual(bytes(context).decode(), line["ctx"])
            self.assertEqual([bytes(c).decode() for c in completions], [" " + e for e in line["endings"]])

    def test_tokens(self):
        """The texts come back from tokens, which are fewer than the bytes."""
        header, examples = self.make(EXAMPLES, self.output, *VOCABULARY)
        self.check_header(header, examples, 2, 0x3B585BBE6F611D7D)
        texts = token_texts()
        for line, (_, label, context, completions) in zip(read_lines(), examples, strict=True):
            self.assertEqual(label, line["label"])
            decoded = [b"".join(texts[t] for t in tokens).decode() for tokens in (context, *completions)]
            self.assertEqual(decoded, [line["ctx"], *(" " + e for e in line["endings"])])
            self.assertLess(len(context), 0.8 * len(line["ctx"]))

    def test_other_lines(self):
        """Two to sixteen endings, empty lines, other members, characters beyond the first plane, no line end."""
        lines = [
            {"ctx": "a\n\"b\" \\ 😀", "endings": ["x", "", "é"], "label": 2, "split": "val"},
            {"ctx": "a", "endings": [str(i) for i in range(16)], "label": 15},
        ]
        for ascii_ in (True, False):
            text = "\n\n".join(json.dumps(line, ensure_ascii=ascii_) for line in lines)
            for arguments in (["--bytes"], VOCABULARY):
                source = self.write(text)
                done = self.run_script(source, self.output, *arguments)
                self.assertEqual(done.returncode, 0, done.stderr)
                _, examples = read_file(self.output)
                self.assertEqual([len(row[3]) for row in examples], [3, 16])
                if arguments == ["--bytes"]:
                    self.assertEqual(bytes(examples[0][2]).decode(), lines[0]["ctx"])
                    self.assertEqual(bytes(examples[0][3][2]).decode(), " é")

    def test_mistakes(self):
        good = {"ctx": "a b", "endings": ["c", "d"], "label": 1}
        first = json.dumps(good) + "\n"
        for change, pattern in (
            ({"label": 2}, r"the label is 2, and endings are numbered 0 to 1"),
            ({"label": -1}, r"the label is -1"),
            ({"label": "1"}, r'the label is "1"'),
            ({"label": True}, r"the label is true"),
            ({"endings": ["c"]}, r"endings is not a list of 2 to 16"),
            ({"endings": ["c"] * 17}, r"endings is not a list of 2 to 16"),
            ({"endings": "cd"}, r"endings is not a list"),
            ({"endings": ["c", 3]}, r"ending 1 is not a text"),
            ({"ctx": ""}, r"ctx is empty"),
            ({"ctx": None}, r"ctx is not a text"),
            ({"ctx": "a\0"}, r"ctx has a zero byte"),
            ({"ctx": "a\ud800"}, r"ctx has half of a surrogate pair"),
            ({"ctx": "a" * 40000}, r"the example takes 800\d\d bytes, and the format allows 65534"),
        ):
            self.refused(first + json.dumps(good | change) + "\n", rf"in\.jsonl: line 2: {pattern}")
        for key in good:
            other = {k: v for k, v in good.items() if k != key}
            self.refused(first * 2 + json.dumps(other), rf"line 3: the object lacks {key}")
        self.refused(first + '{"ctx": "a"', r"line 2: not JSON: ")
        self.refused("[1]\n", r"line 1: not an object")
        self.refused("\n \n", r"in\.jsonl: there are no lines")

    def test_files(self):
        """Files that cannot be read or written; the old output stays."""
        done = self.run_script(os.path.join(self.folder, "none"), self.output)
        self.assertRegex(done.stderr, r"^error: cannot open .*none: No such file")
        done = self.run_script(EXAMPLES, os.path.join(self.folder, "none", "out.bin"), "--bytes")
        self.assertRegex(done.stderr, r"^error: cannot write .*none/out\.bin: No such file")
        done = self.run_program(EXAMPLES)
        self.assertRegex(done.stderr, r"^error: .*examples\.jsonl is where the examples would be written")
        with open(self.output, "w", encoding="utf-8") as f:
            f.write("old")
        done = self.run_script(EXAMPLES, self.output, "--encoder=nowhere.json", f"--bpe={BPE}")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^error: data/tokenize: .*nowhere\.json.*gpt2_bpe\.sh")
        with open(self.output, encoding="utf-8") as f:
            self.assertEqual(f.read(), "old")
        with unittest.mock.patch("os.replace", side_effect=OSError(28, "No space left")):
            done = self.run_script(EXAMPLES, self.output, "--bytes")
        self.assertRegex(done.stderr, r"^error: cannot write .*out\.bin: No space left")
        with open(self.output, encoding="utf-8") as f:
            self.assertEqual(f.read(), "old")
        self.make(EXAMPLES, self.output, "--bytes")

    def test_fetch(self):
        """Without INPUT the published set is fetched; a proxy that is not there stands for no network."""
        env = os.environ | {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
        done = self.run_program(self.output, "--bytes", env=env)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^error: cannot fetch https://.*hellaswag_val\.jsonl: .*INPUT\.jsonl OUTPUT\.bin")
        self.assertEqual(os.listdir(self.folder), [])


if __name__ == "__main__":
    sys.exit(script_tests.main(HellaSwag))
