#!/usr/bin/env python3
"""Our template interpreter against jinja2, set up as transformers sets it up, on generated templates.

usage: templates.py --cli TEXT_CLI [--seconds N] [--seed N] [--cases N] TEMPLATE...
The templates given are rendered with generated conversations; the others are generated whole. Equal means the
same text, or an error on both sides. Prints the numbers; exit code 1 on a difference.
"""
import argparse
import json
import random
import subprocess
import sys
import time
import warnings

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: the body, as transformers' AssistantTracker renders it."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("render"), [], [], body).set_lineno(line)

    def render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


class Generator:
    """Random templates; every construct of the language, nested a few levels."""
    # jinja2 compiles scopes to Python functions, so a block sees a variable that its surroundings set only
    # further down as undefined, even if the context has one of that name; ours sees the context's. Not to meet
    # that, each level of scopes sets variables of its own, and bodies of macros and block sets read none of them.
    NEVER_SET = ["items", "d", "messages", "tools", "missing", "add_generation_prompt", "bos_token"]
    NAMES = ["x", "y0", "y1", "y2", "s", "items", "d", "messages", "tools", "missing", "m", "add_generation_prompt", "bos_token"]
    STRINGS = ["''", "'a'", "'Hello World'", "'  pad '", "'a,b,,c'", "'é ß 日本'", "'x\\ny\\n'", "'<&>\"'", "'12'", "'3.5'", "'%s'",
               "\"it's\"", "'{}'", "'ABC'", "'one two  three'"]
    FILTERS = ["upper", "lower", "trim", "title", "capitalize", "length", "string", "list", "first", "last", "join(',')", "join",
               "default('D')", "default('E', true)", "tojson", "tojson(indent=2)", "int", "float", "abs", "sort", "unique|list",
               "reverse|list", "replace('a', 'b')", "indent(2)", "indent(3, true)", "map('upper')|list",
               "map(attribute='role')|list", "select|list", "reject('none')|list", "selectattr('role')|list",
               "selectattr('role', 'equalto', 'user')|list", "rejectattr('role', 'eq', 'user')|list", "items|list", "dictsort",
               "batch(2)|list", "slice(2)|list", "max", "min", "sum", "round", "round(1)", "e", "wordcount", "truncate(9)",
               "truncate(8, true)", "center(12)", "urlencode", "format(1)", "count", "tojson(sort_keys=true)", "safe", "tojson|safe", "d",
               "groupby('role')|list", "round(0, 'floor')", "map('string')|join('-')", "int(7)", "attr('x')", "forceescape"]
    TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "mapping", "sequence", "iterable", "boolean",
             "true", "false", "odd", "even", "divisibleby(3)", "eq(1)", "ne 'a'", "in [1, 'a']", "lower", "upper", "callable",
             "gt 2", "sameas none", "escaped", "not defined", "not none"]
    METHODS = ["strip()", "lstrip()", "rstrip('d ')", "split()", "split(',')", "split(',', 1)", "rsplit(',', 1)", "upper()", "lower()",
               "title()", "capitalize()", "startswith('a')", "endswith('d')", "replace('a', 'XX')", "replace('l', '', 1)", "find('o')",
               "rfind('o')", "count('a')", "join(['p', 'q'])", "splitlines()", "zfill(6)", "ljust(7)", "rjust(7, '*')", "center(9)",
               "isdigit()", "isalpha()", "isupper()", "islower()", "isspace()", "isalnum()", "istitle()", "partition(' ')",
               "rpartition(',')", "removeprefix('a')", "removesuffix('c')", "swapcase()", "expandtabs()", "index('a')",
               "items()", "keys()", "values()", "get('a')", "get('zz', 3)", "items()|list", "keys()|list", "format(1, 2)", "casefold()"]
    OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "**"]

    def __init__(self, rng):
        self.rng = rng
        self.names = self.NAMES
        self.level = 0

    def scope_body(self, depth):
        self.level += 1
        body = self.body(depth)
        self.level -= 1
        return body

    def closed_body(self, depth):
        names, self.names = self.names, self.NEVER_SET
        body = self.scope_body(depth)
        self.names = names
        return body

    def expression(self, depth=3):
        r = self.rng
        if depth == 0 or r.random() < 0.2:
            return r.choice([lambda: r.choice(self.names), lambda: r.choice(self.STRINGS), lambda: str(r.randrange(-3, 20)),
                             lambda: r.choice(["1.5", "0.1", "2e3", "1e20", "true", "false", "none", "1_000", "0x1f"])])()
        e = lambda: self.expression(depth - 1)  # noqa: E731
        kind = r.randrange(15)
        if kind == 0:
            return f"[{', '.join(e() for _ in range(r.randrange(4)))}]"
        if kind == 1:
            return "{" + ", ".join(f"{r.choice(self.STRINGS)}: {e()}" for _ in range(r.randrange(3))) + "}"
        if kind == 2:
            return f"({e()}, {e()})"
        if kind in (3, 4):
            op = r.choice(self.OPERATORS)
            right = str(r.randrange(4)) if op in ("**", "*") else e()  # powers and products stay small
            return f"({e()} {op} {right})"
        if kind in (5, 6):
            return f"{self.postfix(depth)}|{r.choice(self.FILTERS)}"
        if kind == 7:
            return f"({e()} is {r.choice(self.TESTS)})"
        if kind == 8:
            return f"({e()} if {e()} else {e()})"
        if kind == 9:
            return f"(not {e()})"
        if kind == 10:
            return f"range({r.randrange(4)}, {r.randrange(12)}, {r.choice([1, 2, -1, 3])})|list"
        if kind == 11:
            return f"({e()} if {e()})"
        return self.postfix(depth)

    def postfix(self, depth):
        r = self.rng
        base = f"({self.expression(depth - 1)})" if r.random() < 0.4 else r.choice(self.names + self.STRINGS)
        kind = r.randrange(6)
        if kind == 0:
            return f"{base}.{r.choice(self.METHODS)}"
        if kind == 1:
            return f"{base}[{r.randrange(-3, 4)}]"
        if kind == 2:
            # (jinja2 folds a wrong slice of a constant to undefined, while one of a variable is an error)
            part = lambda: r.choice(["", str(r.randrange(-4, 5))])  # noqa: E731
            return f"{r.choice(self.names)}[{part()}:{part()}:{r.choice(['', '1', '2', '-1', '-2'])}]"
        if kind == 3:
            return f"{base}.{r.choice(['role', 'content', 'a', 'b', 'zz'])}"
        if kind == 4:
            return f"{base}[{r.choice(self.STRINGS)}]"
        return base

    def sign(self):
        return self.rng.choice(["", "", "", "-", "+"])

    def end(self):
        return self.rng.choice(["", "", "", "-"])

    def tag(self, content):
        return f"{{%{self.sign()} {content} {self.end()}%}}"

    def body(self, depth):
        return "".join(self.statement(depth) for _ in range(self.rng.randrange(1, 4)))

    def statement(self, depth=3):
        r = self.rng
        if depth == 0 or r.random() < 0.45:
            return r.choice([lambda: r.choice(["text", " ", "\n", "  \n", "a b\n", "\t", "  ", "{", "}", "é\n", "%}", "\r\n"]),
                             lambda: f"{{{{{self.end()} {self.expression()} {self.end()}}}}}",
                             lambda: f"{{{{ {self.expression()} }}}}",
                             lambda: f"{{#{self.end()} note {self.end()}#}}"])()
        kind = r.randrange(13)
        if kind <= 1:
            b = lambda: self.body(depth - 1)  # noqa: E731
            more = self.tag(f"elif {self.expression(2)}") + b() if r.random() < 0.3 else ""
            more += self.tag("else") + b() if r.random() < 0.5 else ""
            return self.tag(f"if {self.expression(2)}") + b() + more + self.tag("endif")
        b = lambda: self.scope_body(depth - 1)  # noqa: E731
        if kind <= 4:
            control = self.tag(f"if loop.index {r.choice(['==', '>'])} {r.randrange(4)}") + self.tag(r.choice(["break", "continue"])) + \
                self.tag("endif") if r.random() < 0.3 else ""
            loop = r.choice(["", "{{ loop.index }}", "{{ loop.first }}{{ loop.last }}", "{{ loop.previtem }}", "{{ loop.nextitem }}",
                             "{{ loop.cycle('a', 'b') }}", "{{ loop.revindex0 }}/{{ loop.length }}", "{{ loop.changed(x) }}"])
            target = r.choice(["x", "m", "m", "k, v"])
            source = r.choice(["messages", "items", "d", "d.items()", "range(4)", "s", self.expression(2)])
            condition = f" if {r.choice(['d', 'm is defined', 'not m', 'missing is string'])}" if r.random() < 0.2 else ""
            otherwise = self.tag("else") + b() if r.random() < 0.2 else ""
            return self.tag(f"for {target} in {source}{condition}") + control + loop + b() + otherwise + self.tag("endfor")
        if kind <= 6:
            return self.tag(f"set y{self.level} = {self.expression()}")
        if kind == 7:
            return self.tag(f"set y{self.level}{r.choice(['', ' | upper', ' | trim'])}") + self.closed_body(depth - 1) + self.tag("endset")
        if kind == 8:
            return self.tag("set ns = namespace(n=0, t='')") + self.tag("for q in [1, 2]") + \
                self.tag(f"set ns.{r.choice(['n', 't'])} = {self.expression(2)}") + b() + self.tag("endfor") + "{{ ns.n }}{{ ns.t }}"
        if kind == 9:
            name = r.choice(["f", "g"])
            call = r.choice([f"{{{{ {name}({self.expression(2)}) }}}}", f"{{{{ {name}(b={self.expression(1)}, a=1) }}}}", f"{{{{ {name}() }}}}"])
            return self.tag(f"macro {name}(a, b={r.choice(self.STRINGS)})") + "{{ a }}" + self.closed_body(depth - 1) + "{{ b }}" + self.tag("endmacro") + call
        if kind == 10:
            return self.tag(f"with w = {self.expression(2)}") + "{{ w }}" + b() + self.tag("endwith")
        if kind == 11:
            return self.tag("macro c(v)") + "<{{ caller(v) }}>" + self.tag("endmacro") + \
                self.tag(f"call(u) c({self.expression(2)})") + "{{ u }}" + self.closed_body(depth - 1) + self.tag("endcall")
        return r.choice([lambda: self.tag(f"filter {r.choice(['upper', 'trim', 'indent(2)', 'length'])}") + b() + self.tag("endfilter"),
                         lambda: self.tag("generation") + self.closed_body(depth - 1) + self.tag("endgeneration"),
                         lambda: self.tag("raw") + "{{ x }} {% if %}" + self.tag("endraw")])()

    TEXTS = ["", "Hi", " hello\n", "a <b> & 'c' \"d\"", "日本語 é", "<|im_end|>", "12", "line\r\nline", "<think>\nx\n</think>\n\nans", "\t"]

    def value(self, depth=2):
        r = self.rng
        if depth == 0 or r.random() < 0.6:
            return r.choice([r.choice(self.TEXTS), r.randrange(-5, 100), r.random() * 10, True, False, None, 1e16, 2.0])
        if r.random() < 0.5:
            return [self.value(depth - 1) for _ in range(r.randrange(4))]
        return {r.choice(["a", "b", "role", "items", "k é"]): self.value(depth - 1) for _ in range(r.randrange(4))}

    def message(self):
        r = self.rng
        m = {"role": r.choice(["user", "assistant", "system", "tool", "user", "assistant"]), "content": r.choice(self.TEXTS)}
        if r.random() < 0.2:
            m["content"] = [r.choice([{"type": "text", "text": r.choice(self.TEXTS)}, {"type": "image"},
                                      {"type": "image_url", "image_url": {"url": "u"}}]) for _ in range(r.randrange(3))]
        if r.random() < 0.05:
            m["content"] = None
        if m["role"] == "assistant" and r.random() < 0.4:
            m["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": r.choice([{"q": self.value(1)}, '{"q": 1}'])}}
                               for _ in range(r.randrange(1, 3))]
        if m["role"] == "assistant" and r.random() < 0.3:
            m["reasoning_content"] = r.choice(self.TEXTS)
        return m

    def input(self):
        r = self.rng
        value = {"messages": [self.message() for _ in range(r.randrange(5))], "add_generation_prompt": r.random() < 0.5}
        if r.random() < 0.5:
            value["tools"] = [{"type": "function", "function": {"name": "f", "description": r.choice(self.TEXTS), "parameters": self.value()}}]
        if r.random() < 0.2:
            value["documents"] = [{"title": "t", "text": r.choice(self.TEXTS)} for _ in range(r.randrange(3))]
        for name in ("enable_thinking", "add_vision_id"):
            if r.random() < 0.5:
                value[name] = r.random() < 0.5
        value.update({"x": self.value(1), "s": r.choice(self.TEXTS), "d": {"a": self.value(1), "b": 2, "items": 3},
                      "items": [self.value(1) for _ in range(r.randrange(4))]})
        return value


def reference(env, source, variables):
    try:
        # documents and tools are None where they are not given, as in apply_chat_template
        return {"text": env.from_string(source).render(**{"tools": None, "documents": None, "bos_token": "<s>", **variables})}
    except RecursionError:
        return None
    except Exception as error:  # whatever Python raises is an error of the template
        return {"error": f"{type(error).__name__}: {error}"}


def unstable(text):
    """Addresses of Python objects, and functions printed, differ by nature."""
    return " at 0x" in text or "<built-in" in text or "<bound method" in text or "<Macro" in text or "<LoopContext" in text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cli", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=0, help="stop after so many; 0: only the time counts")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("templates", nargs="*")
    args = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # of the Python that jinja2 compiles to
    rng = random.Random(args.seed)
    generator, env = Generator(rng), environment()
    given = []
    for path in args.templates:
        with open(path, encoding="utf-8") as f:
            given.append(f.read())
    texts = errors = skipped = found = 0
    end = time.monotonic() + args.seconds
    cases = 0
    while texts == 0 or (time.monotonic() < end and (args.cases == 0 or cases < args.cases)):
        cases += 400
        batch = []
        for _ in range(400):
            source = rng.choice(given) if given and rng.random() < 0.2 else generator.body(rng.randrange(1, 4))
            batch.append({"template": source, "input": generator.input()})
        lines = "".join(json.dumps(b) + "\n" for b in batch)
        done = subprocess.run([args.cli, "render"], input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
        ours = [json.loads(line) for line in done.stdout.split("\n") if line]
        for request, mine in zip(batch, ours, strict=True):
            theirs = reference(env, request["template"], request["input"])
            if theirs is None or unstable(theirs.get("text", "")) or "beyond 64 bits" in mine.get("error", ""):
                skipped += 1
                continue
            if ("error" in mine) != ("error" in theirs) or mine.get("text") != theirs.get("text"):
                print(f"DIFFERENCE within {cases} cases\n  template {json.dumps(request['template'], ensure_ascii=False)}\n"
                      f"  input    {json.dumps(request['input'], ensure_ascii=False)}\n"
                      f"  ours     {json.dumps(mine, ensure_ascii=False)}\n  jinja2   {json.dumps(theirs, ensure_ascii=False)}")
                found += 1
                if not args.keep_going or found >= 20:
                    return 1
            texts += "text" in theirs
            errors += "error" in theirs
    print(f"templates: {texts} renderings equal to jinja2, {errors} refused by both, {skipped} without a stable reference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
