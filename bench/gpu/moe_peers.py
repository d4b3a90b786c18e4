"""The peer of moe_gpu_bench: PyTorch's grouped products for the same widths, in a CUDA graph.

Rows in the order of experts are given; gathering, SiluMul and the sum over a token's experts are
PyTorch's own kernels. Prints JSON lines whose kernel, shape and dtype are those of moe_gpu_bench.
"""

import torch
from timing import median_us, print_row


def run(hidden, inner, experts, top_k):
    gate_up = torch.randn(experts, 2 * inner, hidden, device="cuda", dtype=torch.bfloat16) * 0.02
    down = torch.randn(experts, hidden, inner, device="cuda", dtype=torch.bfloat16) * 0.02
    for tokens in (32, 256, 2048, 8192):
        x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
        ids = torch.rand(tokens, experts, device="cuda").argsort(1)[:, :top_k].reshape(-1)
        order = ids.argsort(stable=True)
        token_of = order // top_k
        place = order.argsort().reshape(tokens, top_k)
        offsets = torch.bincount(ids, minlength=experts).cumsum(0).to(torch.int32)

        def products(rows):
            wide = torch._grouped_mm(rows, gate_up.transpose(-2, -1), offs=offsets)
            gate, up = wide.chunk(2, dim=-1)
            act = torch.nn.functional.silu(gate) * up
            return torch._grouped_mm(act, down.transpose(-2, -1), offs=offsets)

        def whole(_):
            return products(x[token_of])[place].sum(1)

        row = {
            "kernel": "moe_prompt",
            "shape": f"T{tokens} {hidden}x{inner} {top_k} of {experts}",
            "dtype": "bf16",
            "peer": "torch grouped_mm " + torch.__version__,
            "peer_us": round(median_us(whole, 4), 2),
        }
        print_row(row)


if __name__ == "__main__":
    run(2048, 768, 128, 8)
    run(2048, 512, 512, 10)
