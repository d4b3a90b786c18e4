#!/usr/bin/python3
"""Whoever decodes goes on while pictures of others are encoded: a stream and, beside it, pictures that no cache has, on
`weft serve`. By the trace, every step between the stream's first and last token has decoding in it, also each of those
that encode a picture: no token comes more than one step after the one before.

usage: tests/media/image_steps.py WEFT MODEL [FLAGS of weft serve]
"""
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from PIL import Image

PICTURES = 12
TOKENS = 3000


def body_of(content, **options):
    return json.dumps({"messages": [{"role": "user", "content": content}], "temperature": 0, **options}).encode()


def post(url, body):
    headers = {"Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url + "/v1/chat/completions", body, headers), timeout=120)


def picture(number):
    """A picture of noise, which nobody has sent before."""
    out = io.BytesIO()
    Image.merge("RGB", [Image.effect_noise((224, 224), 20 + number) for _ in range(3)]).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def start(command, log):
    """The server and its URL, once it listens."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    for _ in range(600):
        with open(log.name, encoding="utf-8", errors="replace") as lines:
            found = re.search(r"Page and API: (http://\S+)", lines.read())
        if found:
            return server, found.group(1)
        assert server.poll() is None, "the server ended"
        time.sleep(0.1)
    raise TimeoutError("the server did not start")


def run(url):
    """A stream and pictures beside it; the times of the stream's tokens."""
    times = []
    pictures = [picture(i) for i in range(PICTURES)]

    def stream():
        body = body_of("Write a story.", stream=True, max_tokens=TOKENS, ignore_eos=True)
        with post(url, body) as answer:
            for line in answer:
                if line.startswith(b"data: {") and b'"content"' in line:
                    times.append(time.monotonic())

    talker = threading.Thread(target=stream)
    talker.start()
    while len(times) < 5 and talker.is_alive():
        time.sleep(0.01)
    for image in pictures:
        parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What is this?"}]
        with post(url, body_of(parts, max_tokens=1)) as answer:
            answer.read()
        if not talker.is_alive():
            break
    talker.join()
    return times


def main():
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "wb") as log:
        trace = f"{folder}/trace.json"
        command = [sys.argv[1], "serve", sys.argv[2], "--port", "0", "--trace-file", trace, *sys.argv[3:]]
        server, url = start(command, log)
        try:
            times = run(url)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        assert os.path.exists(trace)
        with open(trace, encoding="utf-8") as lines:
            events = [json.loads(line.rstrip(",\n")) for line in lines if line.startswith("{")]
    stream = next(e["id"] for e in events if e["name"] == "request" and e["ph"] == "b" and e["args"]["generated_tokens"] == TOKENS)
    begin, end = (next(e["ts"] for e in events if e["name"] == "decode" and e["id"] == stream and e["ph"] == ph) for ph in "be")
    steps = [e for e in events if e["name"] == "step" and e["ts"] > begin and e["ts"] + e["dur"] < end]
    encoding = [e for e in steps if e["args"]["image_tokens"] > 0]
    idle = [e for e in steps if e["args"]["decode_rows"] == 0]
    longest = max(b - a for a, b in zip(times, times[1:]))
    print(f"{len(steps)} steps while the stream ran, {len(encoding)} of them with pictures "
          f"(at most {max((e['dur'] for e in encoding), default=0) / 1000:.0f} ms), {len(idle)} without decoding; "
          f"longest pause of the stream {longest * 1000:.0f} ms")
    return 0 if len(encoding) >= 3 and not idle else 1


if __name__ == "__main__":
    sys.exit(main())
