"""Trains the long-context model and its routers on one GPU, bounded by time.

    python train.py --out long_context_model --seconds 95

A Qwen3 of three layers learns the task of task.py at lengths that grow as it succeeds, up to 32k tokens.
Then the heads that have to see far back are found (all stream; the kv head whose full sight lowers the
loss most is added, until nothing is lost), for both kinds of questions, and each layer's router
is fitted to say so. The checkpoint is written as PawQwen3ForCausalLM, full/streaming.
"""
import argparse
import json
import math
import struct
import time

import torch
import torch.nn.functional as F

import task as T

LAYERS, HIDDEN, MLP, HEADS, GROUPS, DIM, THETA, EPS = 3, 256, 512, 8, 4, 64, 1e8, 1e-6
SINK, WINDOW, BLOCK = 128, 512, 128
QUESTIONS = 32
LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
CONFIG = {
    "architectures": ["PawQwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", "vocab_size": T.VOCAB,
    "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS, "head_dim": DIM, "hidden_act": "silu", "attention_bias": False,
    "max_position_embeddings": 65536, "rms_norm_eps": EPS, "rope_theta": THETA, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": T.END, "toggle_type": "streaming", "retrieval_mode": "full",
    "pooling_mode": "ctx_q", "enable_ada_sparsity": True, "use_softmax": True, "sink_size": SINK,
    "local_window_size": WINDOW, "block_size": BLOCK, "xattn_stride": 16, "xattn_threshold": 0.98, "xattn_norm": 1}


# ----------------------------------------------------------------------------------------
# Data

def batch(count, length, near, device, questions=QUESTIONS, keys=len(T.KEYS)):
    """Ids [count, length] and the places of the answers, the same in every row."""
    body = length - 1 - 3 * questions
    slots = body // 2
    close = min(slots, T.NEAR_TOKENS // 2)
    records = min(int(questions * (1 + torch.rand(1).item() * 4)), keys * 3 // 4, slots)
    rand = lambda *shape: torch.rand(*shape, device=device)
    score = rand(count, slots)
    if near:  # the asked ones first: they lie in the last slots
        score[:, -close:] += rand(count, close).argsort(1).argsort(1).lt(questions) * 2.0
    at = score.topk(records, 1).indices
    if not near:
        at = at.gather(1, rand(count, records).argsort(1))
    key = T.KEYS[0] + rand(count, keys).argsort(1)[:, :records]
    value = T.VALUES[0] + (rand(count, records) * len(T.VALUES)).long()
    ids = T.FILLER[0] + (rand(count, length) * len(T.FILLER)).long()
    ids[:, 0] = T.START
    shift = 1 + int(torch.randint(2, (1,))) * (body % 2)
    ids.scatter_(1, shift + 2 * at, key)
    ids.scatter_(1, shift + 2 * at + 1, value)
    tail = ids[:, 1 + body:].view(count, questions, 3)
    tail[:, :, 0] = T.NEAR if near else T.FAR
    tail[:, :, 1], tail[:, :, 2] = key[:, :questions], value[:, :questions]
    return ids, torch.arange(1 + body + 2, length, 3, device=device)


# ----------------------------------------------------------------------------------------
# Model

def make_weights(device):
    g = torch.Generator().manual_seed(1)
    draw = lambda n, k, scale=1.0: torch.randn(n, k, generator=g) * scale / math.sqrt(k)
    w = {"model.embed_tokens.weight": torch.randn(T.VOCAB, HIDDEN, generator=g),
         "lm_head.weight": draw(T.VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        w.update({
            p + "input_layernorm.weight": torch.ones(HIDDEN), p + "post_attention_layernorm.weight": torch.ones(HIDDEN),
            p + "self_attn.q_proj.weight": draw(HEADS * DIM, HIDDEN), p + "self_attn.k_proj.weight": draw(GROUPS * DIM, HIDDEN),
            p + "self_attn.v_proj.weight": draw(GROUPS * DIM, HIDDEN), p + "self_attn.o_proj.weight": draw(HIDDEN, HEADS * DIM, 0.5),
            p + "self_attn.q_norm.weight": torch.full((DIM,), 1.5), p + "self_attn.k_norm.weight": torch.full((DIM,), 1.5),
            p + "mlp.gate_proj.weight": draw(MLP, HIDDEN), p + "mlp.up_proj.weight": draw(MLP, HIDDEN),
            p + "mlp.down_proj.weight": draw(HIDDEN, MLP, 0.5)})
    # Two heads begin as what they would find late. In layer 0 one looks at the token before: dim 0 of every
    # token is the same, q is u and k is u turned by one token, in the pairs that turn fast. It passes on what
    # it sees, by `read` and `write`; in layer 1 one looks for that of the own token.
    group, frame = HEADS // GROUPS, torch.linalg.qr(torch.randn(HIDDEN - 1, 2 * DIM, generator=g))[0]
    read, write = torch.zeros(DIM, HIDDEN), torch.zeros(HIDDEN, DIM)
    read[:, 1:], write[1:] = frame[:, :DIM].T, frame[:, DIM:]
    w["model.embed_tokens.weight"][:, 0] = 3.0
    p, pairs = "model.layers.0.self_attn.", torch.arange(12)
    turn = THETA ** (-2.0 * pairs / DIM)
    w[p + "q_proj.weight"][:group * DIM] = 0
    w[p + "k_proj.weight"][:DIM] = 0
    for head in range(group):
        w[p + "q_proj.weight"][head * DIM + pairs, 0] = 1.0
    w[p + "k_proj.weight"][pairs, 0] = turn.cos()
    w[p + "k_proj.weight"][pairs + DIM // 2, 0] = turn.sin()
    w[p + "q_norm.weight"] *= 2.5 / 1.5
    w[p + "k_norm.weight"] *= 2.5 / 1.5
    w[p + "v_proj.weight"][:DIM] = read
    w[p + "o_proj.weight"][:, :DIM] = write
    p = "model.layers.1.self_attn."
    for head in range(group):
        w[p + "q_proj.weight"][head * DIM:(head + 1) * DIM] = read
    w[p + "k_proj.weight"][:DIM] = write.T
    return {k: v.to(device).requires_grad_() for k, v in w.items()}


def norm(x, w):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS) * w).to(x.dtype)


def rope(x, cos, sin):
    a, b = x[..., :DIM // 2], x[..., DIM // 2:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def attend(q, k, v, mask=None):
    if not hasattr(F, "scaled_dot_product_attention"):  # PyTorch 1: for small trials on a CPU
        s = (q @ k.transpose(-1, -2)).float() / math.sqrt(DIM)
        causal = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril()
        return s.masked_fill(~(causal if mask is None else mask), -math.inf).softmax(-1).to(v.dtype) @ v
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def streaming_mask(length, device):
    """Sink and window by blocks, as weft counts them (docs/kernels/elastic.md)."""
    i = torch.arange(length, device=device)
    b = i // BLOCK
    seen = (b[None] < SINK // BLOCK) | (b[None] > b[:, None] - WINDOW // BLOCK)
    return seen & (i[None] <= i[:, None])


def forward(w, ids, at, kinds=None, pooled=None):
    """Logits of the tokens at `at`. kinds [layers, groups] bool: which kv heads are full (all of them without
    it). pooled: a list that takes the routers' inputs [count, groups, dim] of each layer."""
    half = torch.bfloat16 if ids.is_cuda else torch.float32
    lin = lambda x, name: F.linear(x, w[name].to(half))
    count, length = ids.shape
    angle = torch.arange(length, device=ids.device)[:, None] * THETA ** (-torch.arange(0, DIM, 2, device=ids.device) / DIM)
    cos, sin = angle.cos(), angle.sin()
    mask = None if kinds is None else streaming_mask(length, ids.device)
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"]).to(half)
        q, k, v = (lin(h, p + f"self_attn.{n}_proj.weight").view(count, length, -1, DIM).transpose(1, 2) for n in "qkv")
        q, k = norm(q, w[p + "self_attn.q_norm.weight"]), norm(k, w[p + "self_attn.k_norm.weight"])
        if pooled is not None:
            pooled.append(torch.cat([k[:, :, :100], k[:, :, -100:]], 2).float().mean(2))
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
        o = attend(q, k, v) if kinds is None or kinds[i].any() else None
        if kinds is not None and not kinds[i].all():
            near = attend(q, k, v, mask)
            full = kinds[i].repeat_interleave(HEADS // GROUPS)[None, :, None, None]
            o = near if o is None else torch.where(full, o, near)
        x = x + lin(o.transpose(1, 2).reshape(count, length, -1), p + "self_attn.o_proj.weight")
        if i + 1 == LAYERS:
            x = x[:, at]  # nothing mixes the rows from here on
        h = norm(x, w[p + "post_attention_layernorm.weight"]).to(half)
        x = x + lin(F.silu(lin(h, p + "mlp.gate_proj.weight")) * lin(h, p + "mlp.up_proj.weight"), p + "mlp.down_proj.weight")
    return lin(norm(x, w["model.norm.weight"]).to(half), "lm_head.weight").float()


def score(w, ids, answers, kinds=None):
    """Loss and accuracy of the answers."""
    logits = forward(w, ids, answers - 1, kinds).flatten(0, 1)
    wanted = ids[:, answers].flatten()
    return F.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()


# ----------------------------------------------------------------------------------------
# Training

class Optimizer:
    """Muon for matrices (the momentum's nearest orthogonal matrix), Adam for the rest."""

    def __init__(self, w, lr):
        self.matrices = [v for k, v in w.items() if k.endswith("proj.weight")]
        self.momentum = [torch.zeros_like(v) for v in self.matrices]
        self.lr = lr
        self.rest = torch.optim.Adam([v for k, v in w.items() if not k.endswith("proj.weight")], lr=lr, betas=(0.9, 0.99))

    @torch.no_grad()
    def step(self, share):
        torch.nn.utils.clip_grad_norm_(self.matrices, 1.0)
        by_shape = {}
        for v, m in zip(self.matrices, self.momentum):
            m.lerp_(v.grad, 0.05)
            by_shape.setdefault(v.shape, []).append((v, v.grad.lerp(m, 0.95)))
        for shape, pairs in by_shape.items():
            x = torch.stack([g for _, g in pairs]).to(torch.bfloat16 if self.matrices[0].is_cuda else torch.float32)
            tall = shape[0] > shape[1]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.mT if tall else x
            for (v, _), update in zip(pairs, x):
                v.add_(update.to(v.dtype), alpha=-self.lr * share * 0.4 * math.sqrt(max(shape)))
        self.rest.param_groups[0]["lr"] = self.lr * share
        self.rest.step()
        for v in self.matrices:
            v.grad = None
        self.rest.zero_grad()


def train(w, args, clock, log, save):
    """Lengths grow as the answers get right; the last stretch has all of them."""
    device = w["model.norm.weight"].device
    optimizer, step, stage, accuracy, measured, told, saved = Optimizer(w, args.lr), 0, 0, 0.0, 0, 0.0, 0.0
    lengths = [n for n in LENGTHS if n <= args.longest]
    end = args.seconds - args.reserve
    while clock() < end and step < args.steps:
        late = clock() / end if args.steps >= 10 ** 9 else step / args.steps
        share = min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (1 - late) / 0.35))
        pick = stage
        if stage > 0 and step % 3:  # shorter ones keep coming: they are cheap
            pick = int(torch.randint(max(0, stage - 3), stage + 1, (1,)))
        length = lengths[pick]
        ids, answers = batch(max(1, args.tokens // length), length, step % 4 == 3, device,
                             min(QUESTIONS, length // 10), args.keys)
        loss, right = score(w, ids, answers)
        loss.backward()
        optimizer.step(share)
        step += 1
        if pick == stage and step % 4 != 0:
            measured += 1
            accuracy += (right.item() - accuracy) / min(measured, 5)
        if measured >= 5 and accuracy > 0.95 and stage + 1 < len(lengths):
            stage, accuracy, measured = stage + 1, 0.0, 0
            log(f"step {step}, {clock():.1f} s: length {lengths[stage]}")
        if clock() - told > args.tell:
            told = clock()
            log(f"step {step}, {told:.1f} s: length {length}, loss {loss.item():.4f}, right {right.item():.4f}, at stage {accuracy:.3f}")
        if clock() - saved > 20:
            saved = clock()
            save()
    log(f"trained: {step} steps, {clock():.1f} s, reached {lengths[stage]}")


@torch.no_grad()
def accuracy_of(w, length, near, kinds, count, rounds, keys):
    """Mean loss and accuracy over the same prompts for every plan."""
    torch.manual_seed(length + near)
    device = w["model.norm.weight"].device
    loss = right = 0.0
    for _ in range(rounds):
        ids, answers = batch(count, length, near, device, min(QUESTIONS, length // 10), keys)
        a, b = score(w, ids, answers, kinds)
        loss, right = loss + a.item() / rounds, right + b.item() / rounds
    return loss, right


def needed_heads(w, near, length, count, log, keys):
    """[layers, groups] bool: the fewest kv heads (found greedily) that lose nothing when all others stream."""
    device = w["model.norm.weight"].device
    measure = lambda kinds: accuracy_of(w, length, near, kinds, count, 1, keys)
    dense = measure(None)
    kinds = torch.zeros(LAYERS, GROUPS, dtype=torch.bool, device=device)
    now = measure(kinds)
    log(f"{'near' if near else 'far'} questions, {length} tokens: dense {dense}, all stream {now}")
    while now[1] < dense[1] - 0.004 and not kinds.all():
        best = None
        for i, g in (~kinds).nonzero().tolist():
            trial = kinds.clone()
            trial[i, g] = True
            got = measure(trial)
            if best is None or got[0] < best[0][0]:
                best = got, trial, (i, g)
        now, kinds, added = best
        log(f"  full: layer {added[0]} kv head {added[1]}: loss {now[0]:.4f}, right {now[1]:.4f}")
    for i, g in kinds.nonzero().tolist():  # what a later one made needless
        trial = kinds.clone()
        trial[i, g] = False
        got = measure(trial)
        if got[1] >= dense[1] - 0.004:
            kinds, now = trial, got
            log(f"  not needed: layer {i} kv head {g}: loss {now[0]:.4f}, right {now[1]:.4f}")
    return kinds


def router_shapes():
    return {"cls_feat_extractor.0": (4 * DIM, DIM), "cls_feat_extractor.2": (DIM, 4 * DIM),
            "cls_router_head_agnostic.0": (4 * DIM, DIM), "cls_router_head_agnostic.2": (DIM, 4 * DIM),
            "cls_router_head_agnostic.4": (2, DIM)}


def make_routers(device):
    """Untrained: every head is full."""
    out = {}
    for i in range(LAYERS):
        for name, (n, k) in router_shapes().items():
            p = f"model.layers.{i}.self_attn.mask_allocator.{name}."
            last = name.endswith(".4")
            out[p + "weight"] = torch.zeros(n, k, device=device) if last else torch.randn(n, k, device=device) / math.sqrt(k)
            out[p + "bias"] = torch.tensor([-4.0, 4.0], device=device) if last else torch.zeros(n, device=device)
    return out


def route(r, i, x):
    p = f"model.layers.{i}.self_attn.mask_allocator."
    lin = lambda x, name: F.linear(x, r[p + name + ".weight"], r[p + name + ".bias"])
    f = lin(F.silu(lin(x, "cls_feat_extractor.0")), "cls_feat_extractor.2")
    h = F.silu(lin(f, "cls_router_head_agnostic.0"))
    return lin(F.silu(lin(h, "cls_router_head_agnostic.2")), "cls_router_head_agnostic.4")


def fit_routers(w, wanted, log, args, steps=400):
    """Fits the routers to `wanted` {near: kinds}, on what they see in prompts of every length."""
    device = w["model.norm.weight"].device
    seen = []  # (near, pooled of each layer)
    with torch.no_grad():
        for length in [n for n in LENGTHS if 1024 <= n <= args.longest] or [args.longest]:
            for near in (False, True):
                for _ in range(8):
                    ids, answers = batch(max(1, args.tokens // length // 2), length, near, device,
                                         min(QUESTIONS, length // 10), args.keys)
                    pooled = []
                    forward(w, ids, answers, None, pooled)
                    seen.append((near, pooled))
    r = make_routers(device)
    for v in r.values():
        v.requires_grad_()
    optimizer = torch.optim.Adam(list(r.values()), lr=1e-3)
    xs, ys = [], []
    for i in range(LAYERS):
        xs.append(torch.cat([p[i].reshape(-1, DIM) for _, p in seen]))
        ys.append(torch.cat([wanted[n][i].long().expand(p[i].shape[:2]).reshape(-1) for n, p in seen]))
    for step in range(steps):
        noisy = [x * (1 + 0.02 * torch.randn_like(x)) for x in xs]
        loss = sum(F.cross_entropy(route(r, i, x), y) for i, (x, y) in enumerate(zip(noisy, ys)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for i, (x, y) in enumerate(zip(xs, ys)):
            logits = route({k: v.to(torch.bfloat16).float() for k, v in r.items()}, i, x)
            margin = (logits[:, 1] - logits[:, 0]) * (2 * y - 1)
            log(f"router of layer {i}: {(margin > 0).float().mean().item():.4f} of {len(y)} right, least margin {margin.min().item():.2f}")
    return r


# ----------------------------------------------------------------------------------------
# Files

def write_safetensors(path, tensors):
    header, at, data = {}, 0, []
    for name, t in sorted(tensors.items()):
        raw = t.detach().to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_model(out, w, r):
    T.write_tokenizer(out)
    T.dump(f"{out}/config.json", CONFIG)
    T.dump(f"{out}/generation_config.json", {"do_sample": False, "eos_token_id": T.END})
    write_safetensors(f"{out}/model.safetensors", {**w, **r})


def main():
    started = time.time()
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--seconds", type=float, default=95, help="everything from the start of this script")
    p.add_argument("--reserve", type=float, default=15, help="of them for routers and checks")
    p.add_argument("--tokens", type=int, default=65536, help="in a step")
    p.add_argument("--lr", type=float, default=2.5e-3)
    p.add_argument("--longest", type=int, default=32768)
    p.add_argument("--keys", type=int, default=len(T.KEYS))
    p.add_argument("--steps", type=int, default=10 ** 9, help="stop after so many: for trials")
    p.add_argument("--tell", type=float, default=3)
    args = p.parse_args()
    clock = lambda: time.time() - started

    def log(text):
        print(text, flush=True)

    torch.manual_seed(7)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    w, r = make_weights(device), make_routers(device)
    log(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, "
        f"{sum(v.numel() for v in w.values())} weights, {sum(v.numel() for v in r.values())} in routers, {clock():.1f} s")
    train(w, args, clock, log, lambda: write_model(args.out, w, r))
    write_model(args.out, w, r)
    with torch.no_grad():
        w = {k: v.to(torch.bfloat16).float() for k, v in w.items()}  # as stored
    measured = min(args.longest, 4096)
    wanted = {near: needed_heads(w, near, measured, max(1, args.tokens // measured), log, args.keys) for near in (False, True)}
    r = fit_routers(w, wanted, log, args)
    write_model(args.out, w, r)
    log(f"written, {clock():.1f} s")
    for length in [n for n in LENGTHS if 4096 <= n <= args.longest] or [args.longest]:
        none = torch.zeros_like(wanted[False])
        for name, near, kinds in (("dense", False, None), ("routed", False, wanted[False]), ("retrieval heads stream", False, ~wanted[False]),
                                  ("all stream", False, none), ("near: dense", True, None), ("near: routed", True, wanted[True])):
            if clock() > args.seconds:
                log("no time for the rest")
                return
            try:
                loss, right = accuracy_of(w, length, near, kinds, max(1, 32768 // length), 2, args.keys)
            except RuntimeError as e:  # no memory for a mask of this size: tools/long_context/evaluate.py needs none
                log(f"{length} tokens, {name}: {str(e)[:80]}")
                continue
            log(f"{length} tokens, {name}: loss {loss:.4f}, right {right:.4f} ({clock():.1f} s)")


if __name__ == "__main__":
    main()
