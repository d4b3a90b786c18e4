#!/usr/bin/env python3
"""The law of the floors (docs/architecture.md): who may include whom, and what stays out of where.

usage: tools/check_layers.py [ROOT]      prints file:line: reason for each breach; code 1 if there is one
"""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cpp_text  # noqa: E402

# A floor includes itself and what stands in its row; lowest first, nothing refers to a later row.
FLOORS = {
    "base": [],
    "device": ["base"],
    "tensor": ["base", "device"],
    "checkpoint": ["base", "tensor"],
    "text": ["base"],
    "grammar": ["base"],
    "media": ["base"],
    "cache": ["base"],
    "sched": ["base", "grammar", "cache"],
    "kernels": ["base", "device", "tensor"],
    "kv": ["base", "device", "tensor", "kernels", "cache"],
    "nn": ["base", "device", "tensor", "checkpoint", "kernels", "kv"],
    "models": ["base", "device", "tensor", "checkpoint", "kv", "nn"],
    "runtime": ["base", "device", "tensor", "checkpoint", "kernels", "kv", "nn", "models", "sched",
                "grammar"],
    "engine": ["base", "cache", "sched"],
    "api": ["base", "text", "grammar", "media", "sched", "engine"],
    "server": ["base", "text", "sched", "engine", "api"],
}
FLOORS["app"] = list(FLOORS)

# Third-party parts that stay in .cc files: they cost seconds in every file that sees them.
NEVER_IN_HEADERS = ("nlohmann/", "simdjson", "boost/", "CLI/", "spdlog/", "yaml-cpp/", "curl/", "openssl/")
# What a file of CUDA code may include with <>: the language and the toolkit, so that it builds anywhere.
CUDA_TOOLKIT = re.compile(
    r"(cuda|cub|thrust|nv|nvtx3|cooperative_groups)/.*"
    r"|(cuda|cooperative_groups|device_|math_constants|mma|nccl|cublas|vector_types|sm_)\w*(\.\w+)?"
    r"|[a-z_]+"
    r"|(assert|limits|math|stddef|stdint|stdio|stdlib|string|dlfcn|unistd)\.h"
)
TEST_ONLY = re.compile(r"(gtest|gmock|benchmark|rapidcheck)[/.].*|rapidcheck")
CUDA_CONDITION = re.compile(r"^[ \t]*#[ \t]*(?:el)?if\w*\b[^\n]*(CUDA|NVCC)", re.M)
GETENV = re.compile(r"\b(?:secure_)?getenv\s*\(")
SOURCES = (".h", ".cc", ".cu", ".cuh")


def is_test(path):
    return path.endswith(("_test.cc", "_test.cu", "_fuzz.cc"))


def sources(root):
    """Paths of all sources below root/src, relative to src, sorted."""
    found = []
    for folder, _, names in os.walk(os.path.join(root, "src")):
        for name in names:
            if name.endswith(SOURCES):
                found.append(os.path.relpath(os.path.join(folder, name), os.path.join(root, "src")))
    return sorted(found)


class Tree:
    def __init__(self, root):
        self.texts = {}
        for path in sources(root):
            with open(os.path.join(root, "src", path), encoding="utf-8") as file:
                self.texts[path] = file.read()
        self.includes = {path: list(cpp_text.includes(text)) for path, text in self.texts.items()}

    def reached(self, path):
        """Every (header, line, included) that a file gets through the headers it includes."""
        todo, seen = [path], {path}
        while todo:
            at = todo.pop()
            for line, included, quoted in self.includes.get(at, []):
                if quoted and included not in seen and included in self.texts:
                    seen.add(included)
                    todo.append(included)
                yield at, line, included, quoted


def check_file(tree, path):
    """(line, reason) for each breach in one file."""
    text = tree.texts[path]
    floor = path.split("/")[0]
    if floor not in FLOORS:
        yield 1, f"src/{floor} is no floor; the floors are {' '.join(FLOORS)}"
        return
    allowed = {floor, *FLOORS[floor]}
    for line, included, quoted in tree.includes[path]:
        if quoted:
            other = included.split("/")[0]
            if included.startswith("tests/support/") and is_test(path):
                continue
            if other not in FLOORS or "/" not in included:
                yield line, f'"{included}" is not written from src/ ("floor/file.h")'
            elif other not in allowed:
                yield line, f"{floor} may not include {other}; it may include {' '.join(sorted(allowed))}"
        elif path.endswith((".h", ".cuh")) and included.startswith(NEVER_IN_HEADERS):
            yield line, f"<{included}> belongs in a .cc file, never in a header"
        if included == "regex":
            yield line, "std::regex is not used here (stack depth, speed): PCRE2 in text, or a loop"

    if path.endswith((".cu", ".cuh")) or path.startswith("kernels/cuda/"):
        for at, line, included, quoted in tree.reached(path):
            if quoted or CUDA_TOOLKIT.fullmatch(included):
                continue
            if TEST_ONLY.fullmatch(included) and is_test(path):
                continue
            if at == path:
                yield line, f"CUDA code includes the language and the toolkit only, not <{included}>"
            else:
                yield 1, f"CUDA code gets <{included}> through {at}:{line}"

    code = cpp_text.code_only(text)
    if floor != "device" and not path.startswith("kernels/cuda/"):
        for match in CUDA_CONDITION.finditer(code):
            yield cpp_text.line_of(code, match.end()), "#if on CUDA belongs in device/ and kernels/cuda/ only"
    if floor != "app":
        for match in GETENV.finditer(code):
            yield cpp_text.line_of(code, match.start()), "getenv belongs in the options code of app/; pass the value in"


def check(root):
    """All breaches as `file:line: reason`."""
    tree = Tree(root)
    return [f"src/{path}:{line}: {reason}" for path in tree.texts for line, reason in check_file(tree, path)]


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    if not sources(root):
        print(f"check_layers: no sources below {root}/src", file=sys.stderr)
        return 1
    breaches = check(root)
    for breach in breaches:
        print(breach)
    print(f"layers: {len(sources(root))} files, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
