#!/usr/bin/env python3
"""Budgets: lines a file, parameters a function, bytes in the repository.

usage: tools/check_size.py [ROOT]        prints file:line: reason for each excess; code 1 if there is one
"""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cpp_text  # noqa: E402

LINES = {".cc": 600, ".h": 600, ".cu": 900, ".cuh": 900}
PARAMETERS = 6
TRACKED_MIB = 46
FOLDERS = ("src", "tests", "bench")

# Exceptions, each with what it may have at most: "path": lines, or "path:function": parameters. The list
# only shrinks: an entry that is no longer needed, or larger than needed, is an error.
ALLOWED = {}
ALLOWED_AT_MOST = 5

_NOT_FUNCTIONS = {"alignas", "decltype", "noexcept", "requires", "sizeof", "static_assert", "explicit", "__attribute__", "if",
                  "for", "while", "switch", "return", "catch", "__launch_bounds__", "__align__", "asm"}
_SCOPE = re.compile(r"\b(namespace|class|struct|union)\b|\bextern\s*$")


def _close(code, start):
    """Offset behind the bracket that closes the one at start."""
    depth = 0
    for i in range(start, len(code)):
        if code[i] in "([{":
            depth += 1
        elif code[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return len(code)


def _count(parameters):
    """How many parameters stand between the parentheses."""
    depth, commas = 0, 0
    for i, c in enumerate(parameters):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and parameters[i - 1] != "-"):
            depth -= 1
        elif c == "," and depth == 0:
            commas += 1
    return commas + 1 if parameters.strip() not in ("", "void") else 0


def _function(head):
    """(name, parameter count, offset) of the function that a declaration's head declares, or None."""
    i, angle = 0, 0
    while i < len(head):
        c = head[i]
        if c == "<":
            angle += 1
        elif c == ">" and head[i - 1] != "-":
            angle = max(0, angle - 1)
        elif c == "=" and angle == 0 and not head[:i].rstrip().endswith(("operator", "operator=", "operator!", "operator<", "operator>", "+", "-", "*", "/")):
            return None
        elif c == "[":
            i = _close(head, i)
            continue
        elif c == "(":
            end = _close(head, i)
            named = re.search(r"(operator\s*(?:\(\s*\)|[^\s\w(]+|\w[\w:*& ]*)|~?[A-Za-z_]\w*)\s*$", head[:i])
            name = named.group(1) if named else ""
            if re.fullmatch(r"operator\s*", name) or (name == "operator" and head[i:end].strip("() ") == ""):
                i = end  # the () of operator(): its parameters follow
                nxt = head.find("(", i)
                if nxt < 0:
                    return None
                return "operator()", _count(head[nxt + 1:_close(head, nxt) - 1]), nxt
            if angle == 0 and name and name not in _NOT_FUNCTIONS and not re.fullmatch(r"[A-Z][A-Z0-9_]+", name):
                return name, _count(head[i + 1:end - 1]), i
            i = end
            continue
        i += 1
    return None


def functions(text):
    """(line, name, parameters) of the functions declared at namespace and class scope."""
    code = re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda m: re.sub(r"[^\n]", " ", m.group()), cpp_text.code_only(text), flags=re.M)
    i, start, in_list = 0, 0, False
    while i < len(code):
        c = code[i]
        if c == "(" or c == "[":
            i = _close(code, i)
            continue
        if c == ";" or c == "{" or c == "}":
            head = code[start:i]
            found = None if in_list else _function(head)
            in_list = False
            if found:
                name, count, at = found
                yield cpp_text.line_of(code, start + at), name, count
            if c == "{" and (found or not _SCOPE.search(head)):
                i = _close(code, i)  # a body or an initialiser: nothing is declared at our scope inside
                # After `a_{1}` of an initialiser list come more of them and a body, but no parameters.
                in_list = code[i:i + 64].lstrip()[:1] in (",", "{")
                start = i
                continue
            start = i + 1
        i += 1


def check_text(path, text, allowed):
    """(line, reason) for each excess in one file; uses up the entries of `allowed` that it needs."""
    budget = LINES[os.path.splitext(path)[1]]
    lines = text.count("\n") + (0 if text.endswith("\n") or not text else 1)
    limit = allowed.get(path, budget)
    if lines > limit:
        yield lines, f"{lines} lines, at most {limit}: split it by role"
    if path in allowed and lines < limit:
        yield 1, f"its entry in ALLOWED says {limit} lines, it has {lines}: {'lower' if lines > budget else 'remove'} the entry"
    most = {}
    for line, name, count in functions(text):
        limit = allowed.get(f"{path}:{name}", PARAMETERS)
        most[name] = max(count, most.get(name, 0))
        if count > limit:
            yield line, f"{name} has {count} parameters, at most {limit}: pass a struct by role"
    for key, limit in allowed.items():
        if key.startswith(path + ":") and most.get(key[len(path) + 1:], 0) < limit:
            yield 1, f"its entry {key} in ALLOWED is larger than needed: lower or remove it"


def tracked_bytes(root):
    """Bytes of all files that git tracks, as they stand in the work tree."""
    names = subprocess.run(["git", "-C", root, "ls-files", "-z"], check=True, stdout=subprocess.PIPE).stdout.split(b"\0")
    paths = [os.path.join(os.fsencode(root), n) for n in names if n]
    return sum(os.lstat(p).st_size for p in paths if os.path.lexists(p))


def check(root, allowed=None):
    """All excesses as `file:line: reason`, and the number of files looked at."""
    allowed = ALLOWED if allowed is None else allowed
    found, count, seen = [], 0, set()
    if len(allowed) > ALLOWED_AT_MOST:
        found.append(f"tools/check_size.py:1: {len(allowed)} exceptions, at most {ALLOWED_AT_MOST}")
    for top in FOLDERS:
        for folder, _, names in sorted(os.walk(os.path.join(root, top))):
            for name in sorted(names):
                if os.path.splitext(name)[1] not in LINES:
                    continue
                path = os.path.relpath(os.path.join(folder, name), root)
                seen.add(path)
                with open(os.path.join(root, path), encoding="utf-8") as file:
                    text = file.read()
                count += 1
                found += [f"{path}:{line}: {reason}" for line, reason in check_text(path, text, allowed)]
    for key in allowed:
        if key.split(":")[0] not in seen:
            found.append(f"tools/check_size.py:1: ALLOWED names {key}, which is not there: remove it")
    return found, count


def main():
    root = os.path.realpath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    found, count = check(root)
    for line in found:
        print(line)
    mib = tracked_bytes(root) / 2**20
    if mib >= TRACKED_MIB:
        found.append("")
        print(f"tracked files: {mib:.1f} MiB, the limit is {TRACKED_MIB}")
    print(f"sizes: {count} files, {len(found)} excesses; {mib:.1f} MiB tracked of {TRACKED_MIB}")
    return 1 if found or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
