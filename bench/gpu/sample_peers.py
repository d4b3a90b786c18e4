"""PyTorch beside sample_gpu_bench: what a server without kernels of its own calls. Usage: sample_peers.py [--quick]"""
import sys

import torch
from timing import median_us, print_row

VOCABULARY, ROWS = 151936, 192


def draw(weights):
    """Of each row one, by exponential races (vLLM's way): no synchronisation."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def top_p(x, p, temperature):
    ordered, order = torch.sort(x / temperature, -1)
    weights = torch.softmax(ordered, -1)
    weights[weights.cumsum(-1) <= 1 - p] = 0
    return order.gather(-1, draw(weights).unsqueeze(-1))


def top_k(x, k):
    best, order = torch.topk(x, k)
    return order.gather(-1, draw(torch.softmax(best, -1)).unsqueeze(-1))


CASES = {
    "sample greedy": lambda x: x.argmax(-1),
    "sample temperature": lambda x: draw(torch.softmax(x, -1)),
    "sample top_k 50": lambda x: top_k(x, 50),
    "sample top_p 0.95": lambda x: top_p(x, 0.95, 0.7),
}


def main():
    x = torch.randn(ROWS, VOCABULARY, device="cuda") * 3
    for rows in (1, 64):
        sets = ROWS // rows
        for kernel, body in CASES.items():
            calls = 6 if rows > 1 else 18
            us = median_us(lambda i: body(x[i % sets * rows : (i % sets + 1) * rows]), calls)
            row = {
                "kernel": kernel,
                "shape": f"R{rows} V{VOCABULARY}",
                "dtype": "f32",
                "peer": "pytorch",
                "peer_us": round(us, 2),
            }
            print_row(row)
        if "--quick" in sys.argv:
            return


if __name__ == "__main__":
    main()
