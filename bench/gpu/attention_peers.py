"""PyTorch's attention of prompts on the shapes of attention_prefill_bench, as the same JSON rows.

Usage: python3 attention_peers.py [--quick]
Backends: cuDNN and flash of scaled_dot_product_attention, dense causal, q heads grouped (GQA).
Medians of CUDA-graph replays between events; two input sets, fresh random values.
"""
import json
import sys

import torch
import torch.nn.functional as F
from timing import median_us, print_row
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = [(128, 32, 8, 8192), (128, 32, 8, 32768), (256, 16, 2, 16384)]
MORE = [(128, 32, 8, 2048), (256, 16, 2, 4096), (64, 32, 8, 16384)]
PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def inputs(dim, q_heads, kv_heads, tokens):
    def make(heads):
        return torch.randn(1, tokens, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    return make(q_heads), make(kv_heads), make(kv_heads)


def main():
    shapes = SHAPES if "--quick" in sys.argv else SHAPES + MORE
    for dim, q_heads, kv_heads, tokens in shapes:
        flops = 4.0 * dim * q_heads * tokens * (tokens + 1) / 2
        sets = [inputs(dim, q_heads, kv_heads, tokens) for _ in range(2)]
        calls = 2 if flops > 4e12 else 6 if flops > 4e11 else 20
        for name, backend in PEERS.items():
            if "--cudnn" in sys.argv and name != "cudnn":
                continue

            def call(i):
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(*sets[i % 2], is_causal=True, enable_gqa=True)

            try:
                us = median_us(call, calls)
            except RuntimeError as error:
                print(json.dumps({"peer": name, "shape": f"D{dim}", "error": str(error)[:120]}))
                continue
            row = {
                "kernel": "attention_prefill",
                "shape": f"D{dim} H{q_heads}/{kv_heads} T{tokens}",
                "dtype": "bf16",
                "peer": name,
                "peer_us": round(us, 2),
                "tflops": round(flops / us * 1e-6, 1),
            }
            print_row(row)


if __name__ == "__main__":
    main()
