#!/usr/bin/env python3
"""Kinds of kv heads for `--prefill-attention xattn:heads=FILE`, where no router says them (dummy weights).

usage: head_kinds.py LAYERS KV_HEADS RETRIEVAL SPARSE SHARE > FILE     e.g. 36 8 full streaming 0.7

Of each layer's kv heads so many are SPARSE that SHARE of all are, up to that layer, as nearly as whole heads allow.
"""
import json
import sys


def main() -> None:
    layers, heads = int(sys.argv[1]), int(sys.argv[2])
    retrieval, sparse, share = sys.argv[3], sys.argv[4], float(sys.argv[5])
    given, out = 0, []
    for layer in range(layers):
        count = min(heads, round((layer + 1) * heads * share) - given)
        given += count
        # Turned from layer to layer, so that no head is always of one kind.
        kinds = [sparse if (h + layer) % heads < count else retrieval for h in range(heads)]
        out.append({"heads": kinds})
    json.dump({"sink_size": 128, "local_window_size": 2048, "layers": out}, sys.stdout)


main()
