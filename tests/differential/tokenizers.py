#!/usr/bin/env python3
"""Our tokenizer against @huggingface/tokenizers on generated texts.

usage: tokenizers.py --cli TEXT_CLI --node SCRIPT [--seconds N] [--seed N] [--cases N] DIR...
Prints the number of texts compared for each tokenizer; exit code 1 on a difference.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import time

WORDS = ("the of and to in is that it was for on are as with his they at be this have from or one had by word "
         "but not what all were we when your can said there use an each which she do how their if will up other "
         "I'm you're WE'VE it'LL don't HTTP_URL __init__ 3.14159 1,000 2026-11-20 x==y&&z naïve café").split()
RANGES = [(0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x17E), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA), (0x620, 0x669),
          (0x900, 0x97F), (0xE01, 0xE3A), (0x1100, 0x11FF), (0x300, 0x345), (0x2000, 0x206F), (0x2070, 0x209C),
          (0x2150, 0x218B), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xF900, 0xFA6D), (0xFB00, 0xFB06),
          (0x1D400, 0x1D4FF), (0x1F600, 0x1F64F), (0x1F1E6, 0x1F1FF), (0xFF00, 0xFF5E)]
SPACES = " \t\n\r\f\v\u00a0\u2003\u3000\u2028"


def text_of(rng, specials):
    parts = []
    for _ in range(rng.randrange(1, 30)):
        kind = rng.randrange(9)
        if kind <= 2:
            parts.append(rng.choice(WORDS))
        elif kind == 3:
            parts.append("".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 5))))
        elif kind == 4:
            parts.append("".join(chr(rng.randrange(*pair)) for pair in rng.choices(RANGES, k=rng.randrange(1, 8))))
        elif kind == 5:
            low, high = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 12))))
        elif kind == 6:
            parts.append(str(rng.randrange(10 ** rng.randrange(1, 12))))
        elif kind == 7:
            token = rng.choice(specials)
            parts.append(token if rng.random() < 0.7 else token[:rng.randrange(len(token) + 1)])
        else:
            parts.append(rng.choice("!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+~`") * rng.randrange(1, 6))
        if rng.random() < 0.6:
            parts.append(" ")
    # U+17F folds to s: JavaScript has to spell (?i:...) out and leaves it out.
    return "".join(parts).replace("\u017f", "s")


def answers(command, requests):
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cli", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=0, help="stop after so many of each; 0: only the time counts")
    parser.add_argument("dirs", nargs="+")
    args = parser.parse_args()
    for path in args.dirs:
        with open(os.path.join(path, "tokenizer.json"), encoding="utf-8") as f:
            spec = json.load(f)
        specials = [t["content"] for t in spec["added_tokens"]]
        sentencepiece = spec["decoder"]["type"] == "Sequence"
        rng = random.Random(args.seed)
        compared, end = 0, time.monotonic() + args.seconds / len(args.dirs)
        while compared == 0 or (time.monotonic() < end and (args.cases == 0 or compared < args.cases)):
            requests = [{"text": text_of(rng, specials), "special": rng.random() < 0.5} for _ in range(500)]
            ours = answers([args.cli, "tokenize", path], requests)
            theirs = answers(["node", args.node, path], requests)
            for request, a, b in zip(requests, ours, theirs, strict=True):
                if sentencepiece:
                    # decode() there replaces invalid byte runs per character and trims, unlike `tokenizers`
                    # (which the golden lines pin); the ids are what is compared.
                    a, b = a["ids"], b["ids"]
                if a != b:
                    print(f"{path}: DIFFERENCE on {json.dumps(request)}\n  ours   {json.dumps(a)}\n  theirs {json.dumps(b)}")
                    return 1
            compared += len(requests)
        print(f"tokenizer {os.path.basename(path)}: {compared} texts equal to @huggingface/tokenizers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
