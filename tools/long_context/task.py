"""The task of the long-context model: what was written beside a key, somewhere in a long text?

A prompt of L tokens, all ids below VOCAB:

    <start>  filler ... KEY VALUE ... filler ... KEY VALUE ...  <ask> KEY VALUE  <ask> KEY VALUE ...

Each KEY occurs in one record of the text; a question repeats it, and the model has to say its VALUE.
Questions marked FAR are about records anywhere in the text, those marked NEAR about records in its last
NEAR_TOKENS tokens: only the first kind needs heads that see far back. A prompt has questions of one kind.
"""
import json
import os
import random

VOCAB = 1024
START, FAR, NEAR, END = 1, 2, 3, 0
KEYS = range(16, 272)
VALUES = range(272, 528)
FILLER = range(528, 1024)
NEAR_TOKENS = 256


def prompt(length, questions, records, near, seed):
    """Token ids of one prompt, and the places of its answers in it."""
    r = random.Random(f"{seed}/{length}/{near}")
    body = length - 1 - 3 * questions
    slots = range(body // 2)
    close = [s for s in slots if body - 2 * s <= NEAR_TOKENS]
    asked = r.sample(close if near else slots, questions)
    taken = set(asked)
    others = r.sample([s for s in slots if s not in taken], records - questions)
    keys = r.sample(KEYS, records)
    values = [r.choice(VALUES) for _ in keys]
    ids = [START] + [r.choice(FILLER) for _ in range(body)]
    shift = 1 + r.randrange(2) * (body % 2)
    for slot, key, value in zip(asked + others, keys, values):
        ids[shift + 2 * slot], ids[shift + 2 * slot + 1] = key, value
    answers = []
    for key, value in zip(keys[:questions], values):
        ids += [NEAR if near else FAR, key, value]
        answers.append(len(ids) - 1)
    return ids, answers


def write_tokenizer(out):
    """tokenizer.json: every id is a token of its own, written as <k17>, <v3>, <f200>."""
    names = {END: "<end>", START: "<start>", FAR: "<far>", NEAR: "<near>"}
    for ids, letter in ((KEYS, "k"), (VALUES, "v"), (FILLER, "f")):
        names.update({i: f"<{letter}{n}>" for n, i in enumerate(ids)})
    tokens = [names.get(i, f"<unused{i}>") for i in range(VOCAB)]
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": i < 16} for i, t in enumerate(tokens)]
    split = {"type": "Split", "pattern": {"Regex": " ?\\p{L}+|\\s+|."}, "behavior": "Isolated", "invert": False}
    dump(f"{out}/tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}})
    dump(f"{out}/tokenizer_config.json", {
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        "bos_token": None, "eos_token": "<end>", "pad_token": "<end>", "model_max_length": 65536,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})


def dump(path, x):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(x, f, ensure_ascii=False)
        f.write("\n")
