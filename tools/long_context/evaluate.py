"""What sparse prefill costs the long-context model in answers, measured through `weft serve`.

    python evaluate.py --weft build/release/weft --model long_context_model --out results.json
        [--lengths 4096,8192,16384,32768] [--answers 256] [--sweep 8192] [--plot recall.svg] [--device cpu]

1. Recall: the share of right answers by length and plan: dense; the model's routers with each pair of kinds;
   and, as a control that must fail, the heads that the routers keep full made to stream.
2. XAttention without routers over strides and thresholds: recall, computed share of the causal
   blocks, softmax mass really kept, KL divergence from dense at the answers (over the 20 likeliest tokens of
   dense and the rest as one).
Python's standard library alone; the prompts are those of task.py with seeds of their own.
"""
import argparse
import json
import math
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request

import task as T

QUESTIONS, RECORDS = 32, 160


class Server:
    def __init__(self, weft, model, device, longest, flags=()):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [weft, "serve", model, "--port", str(port), "--device", device, "--max-model-len", str(longest + 64),
             "--max-num-seqs", "1", "--no-enable-prefix-caching", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(self.process.stderr.read())
            try:
                urllib.request.urlopen(self.url + "/ready").read()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the server does not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate()

    def logprobs(self, ids, top):
        """[{token: (rank, logprob)}] of the prompt's places."""
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top}
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["choices"][0]["prompt_logprobs"]

    def counters(self):
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        get = lambda name: sum(float(x) for x in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.M))
        heads = {kind: sum(float(x) for x in re.findall(rf'^weft:prefill_heads_total{{.*kind="{kind}".*}} (\S+)$', text, re.M))
                 for kind in ("full", "streaming", "blocks")}
        return {"computed": get("weft:prefill_computed_blocks_total"), "causal": get("weft:prefill_causal_blocks_total"),
                "seconds": get("vllm:request_prefill_time_seconds_sum"), "heads": heads}


def variant(model, out, config=None, routers=None):
    """A copy of the model with other fields in config.json, and other decisions: "swap" or "stream"."""
    os.makedirs(out)
    for name in os.listdir(model):
        shutil.copy(f"{model}/{name}", f"{out}/{name}")
    if config:
        fields = json.load(open(f"{out}/config.json", encoding="utf-8"))
        fields.update(config)
        T.dump(f"{out}/config.json", fields)
    if routers:
        path = f"{out}/model.safetensors"
        data = bytearray(open(path, "rb").read())
        size = struct.unpack("<Q", data[:8])[0]
        for name, info in json.loads(data[8:8 + size]).items():
            if ".cls_router_head_agnostic.4." not in name:
                continue
            begin, end = (8 + size + x for x in info["data_offsets"])
            half = (begin + end) // 2
            if routers == "swap":
                data[begin:end] = data[half:end] + data[begin:half]
            else:  # bf16: 0x461c is about 10,000
                data[begin:end] = b"\x1c\x46\x00\x00" if name.endswith("bias") else bytes(end - begin)
        open(path, "wb").write(data)
    return out


def best(place):
    return int(next(token for token, x in place.items() if x.get("rank") == 1))


def divergence(dense, other):
    """KL(dense | other) over dense's listed tokens, the rest as one."""
    kl, p_rest, q_rest = 0.0, 1.0, 1.0
    least = min(x["logprob"] for x in other.values())
    for token, x in dense.items():
        p, q = math.exp(x["logprob"]), math.exp(other[token]["logprob"] if token in other else least)
        kl += p * math.log(p / max(q, 1e-30))
        p_rest, q_rest = p_rest - p, q_rest - q
    return max(0.0, kl + (p_rest * math.log(p_rest / max(q_rest, 1e-9)) if p_rest > 1e-9 else 0.0))


def ask(server, length, prompts, near=False, top=1):
    """Right answers, answers, and what was said at the answers' places."""
    before, right, said = server.counters(), 0, []
    for seed in range(prompts):
        ids, answers = T.prompt(length, QUESTIONS, min(RECORDS, length // 8), near, f"evaluation/{seed}")
        places = server.logprobs(ids, top)
        said += [places[at] for at in answers]
        right += sum(best(places[at]) == ids[at] for at in answers)
    after = server.counters()
    blocks = after["causal"] - before["causal"]
    heads = {k: after["heads"][k] - before["heads"][k] for k in after["heads"]}
    return {"length": length, "near": near, "right": right, "answers": len(said), "recall": right / len(said),
            "density": (after["computed"] - before["computed"]) / blocks if blocks else 1.0,
            "full_heads": heads["full"] / sum(heads.values()) if blocks else 1.0,
            "seconds": (after["seconds"] - before["seconds"]) / prompts}, said


def kept_mass(args, model, flags, length, directory):
    """The share of the softmax that the plan keeps, of one prompt (`weft inspect attention`)."""
    ids, _ = T.prompt(length, QUESTIONS, min(RECORDS, length // 8), False, "evaluation/0")
    T.dump(f"{directory}/ids.json", ids)
    text = subprocess.run([args.weft, "inspect", "attention", model, "-p", f"{directory}/ids.json", "-o", f"{directory}/page.html",
                           "--max-model-len", str(length + 64), *flags], check=True, capture_output=True, text=True).stdout
    least = min(float(x) for x in re.findall(r"least +([\d.]+) %", text))
    return float(re.search(r"kept ([\d.]+) % of the softmax", text)[1]) / 100, least / 100


def recall(args, directory):
    dense = ("--prefill-attention", "dense")
    plans = [("dense", args.model, dense, False), ("routed: full/streaming", args.model, (), False),
             ("routed: full/xattn", variant(args.model, f"{directory}/fx", {"toggle_type": "xattn"}), (), False),
             ("routed: xattn/streaming", variant(args.model, f"{directory}/xs", {"retrieval_mode": "xattn"}), (), False),
             ("control: retrieval heads stream, others full", variant(args.model, f"{directory}/swap", None, "swap"), (), False),
             ("control: all heads stream", variant(args.model, f"{directory}/stream", None, "stream"), (), False),
             ("near questions, dense", args.model, dense, True), ("near questions, routed: full/streaming", args.model, (), True)]
    for one in args.routed:
        threshold, stride = one.split(":")
        fields = {"retrieval_mode": "xattn", "xattn_threshold": float(threshold), "xattn_stride": int(stride)}
        plans.append((f"routed: xattn/streaming, threshold {threshold}, stride {stride}",
                      variant(args.model, f"{directory}/xs{threshold}-{stride}", fields), (), False))
    plans = [plan for plan in plans if re.search(args.plans, plan[0])]
    out = []
    for name, model, flags, near in plans:
        with Server(args.weft, model, args.device, max(args.lengths), flags) as server:
            for length in args.lengths:
                row, _ = ask(server, length, max(1, args.answers // QUESTIONS), near)
                out.append({"plan": name, **row})
                print(f"{name:46} {length:6} tokens: recall {row['right']}/{row['answers']} = {100 * row['recall']:6.2f} %, "
                      f"full heads {100 * row['full_heads']:5.1f} %, blocks {100 * row['density']:5.1f} %, {row['seconds']:6.2f} s a prompt", flush=True)
    return out


def sweep(args, directory):
    length, prompts, out = args.sweep, max(1, args.answers // QUESTIONS // 2), []
    with Server(args.weft, args.model, args.device, length, ("--prefill-attention", "dense")) as server:
        row, dense = ask(server, length, prompts, top=20)
    out.append({"stride": 0, "threshold": 1.0, "mass": 1.0, "least_mass": 1.0, "kl": 0.0, **row})
    for stride in (4, 8, 16):
        for threshold in args.thresholds:
            flags = ("--prefill-attention", f"xattn:threshold={threshold},stride={stride},from=0")
            with Server(args.weft, args.model, args.device, length, flags) as server:
                row, said = ask(server, length, prompts, top=20)
            mass, least = kept_mass(args, args.model, flags, min(length, 8192), directory)
            kl = sum(divergence(p, q) for p, q in zip(dense, said)) / len(dense)
            out.append({"stride": stride, "threshold": threshold, "mass": mass, "least_mass": least, "kl": kl, **row})
            print(f"xattn stride {stride:2} threshold {threshold:.2f}, {length} tokens: recall {100 * row['recall']:6.2f} %, blocks "
                  f"{100 * row['density']:5.1f} %, softmax kept {100 * mass:6.2f} % (least {100 * least:6.2f} %), KL {kl:.4f}", flush=True)
    return out


def plot(rows, path):
    """Recall against the computed share of blocks, a line a stride."""
    width, height, left, bottom = 460, 240, 46, 34
    x = lambda v: left + v * (width - left - 12)
    y = lambda v: height - bottom - v * (height - bottom - 14)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i in range(0, 11, 2):
        v = i / 10
        out.append(f'<path d="M{x(v):.0f} {y(0):.0f}V{y(1):.0f}M{x(0):.0f} {y(v):.0f}H{x(1):.0f}" stroke="#ddd"/>'
                   f'<text x="{x(v):.0f}" y="{y(0) + 14:.0f}" text-anchor="middle">{10 * i}</text>'
                   f'<text x="{left - 5}" y="{y(v) + 4:.0f}" text-anchor="end">{10 * i}</text>')
    out.append(f'<text x="{x(0.5):.0f}" y="{height - 4}" text-anchor="middle">computed blocks, % of the causal ones</text>'
               f'<text x="12" y="{y(0.5):.0f}" text-anchor="middle" transform="rotate(-90 12 {y(0.5):.0f})">recall, %</text>')
    for stride, color, row in ((4, "#1b6", 0), (8, "#26c", 1), (16, "#c42", 2)):
        points = sorted((r["density"], r["recall"]) for r in rows if r["stride"] == stride)
        out.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="' + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points) + '"/>')
        out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{color}"/>' for a, b in points]
        out.append(f'<text x="{x(1) - 4:.0f}" y="{y(0.3) + 15 * row:.0f}" text-anchor="end" fill="{color}">stride {stride}</text>')
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(out) + "\n</svg>\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--weft", default="build/release/weft")
    p.add_argument("--model", required=True)
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", required=True)
    p.add_argument("--plot")
    p.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",") if x], default=[4096, 8192, 16384, 32768])
    p.add_argument("--thresholds", type=lambda s: [float(x) for x in s.split(",")], default=[0.5, 0.7, 0.8, 0.9, 0.95])
    p.add_argument("--routed", type=lambda s: s.split(","), default=[], help="THRESHOLD:STRIDE,..: more of xattn/streaming")
    p.add_argument("--plans", default="", help="only those whose name holds this expression")
    p.add_argument("--answers", type=int, default=256, help="of each length and plan")
    p.add_argument("--sweep", type=int, default=8192, help="length of the second part; 0: leave it out")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = {"model": args.model, "device": args.device}
        if args.lengths:
            results["recall"] = recall(args, directory)
        if args.sweep:
            results["sweep"] = sweep(args, directory)
            if args.plot:
                plot(results["sweep"], args.plot)
    T.dump(os.path.abspath(args.out), results)


if __name__ == "__main__":
    main()
