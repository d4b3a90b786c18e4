#!/usr/bin/env python3
"""Answers that a JSON schema binds, against Debian's python3-jsonschema.

`weft serve --device fake` draws at random among the tokens that the grammar allows, so each answer is a random walk
through the schema's automaton; every one that ends by itself must be JSON and valid. The other way round `grammar_cli`
must accept drawn instances that are valid, and none that are not. Schemas are random over the supported keywords, and
some as users write them. Fails where one is not so; the last lines count.
usage: schemas.py --weft PATH --cli PATH [--schemas 1200] [--samples 6] [--seed 1]
"""
import argparse
import http.client
import json
import random
import re
import subprocess
import sys
import threading

import jsonschema
from instances import Instances, variants

NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}},
    "required": ["v"],
}
WRITTEN = [
    {
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}, "total": {"type": "number"}},
        "required": ["items", "total"],
        "$defs": {
            "Item": {
                "title": "Item",
                "type": "object",
                "properties": {
                    "sku": {"type": "string"},
                    "qty": {"type": "integer", "minimum": 1},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["sku", "qty"],
            }
        },
    },
    {
        "type": "object",
        "properties": {
            "steps": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                    "required": ["explanation", "output"],
                    "additionalProperties": False,
                },
            },
            "final_answer": {"type": "string"},
        },
        "required": ["steps", "final_answer"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "city": {"type": "string"}}},
    {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
    {"type": "array", "items": {"type": "object", "properties": {"at": {"type": "string", "format": "date-time"}}}},
    {"enum": ["a", "A", "a b", 0, 0.5, -1, None, False, [], [1, "x"], {}, {"k": {"l": 1}}]},
    {"const": {"mode": "strict", "list": [1, 2.5, None]}},
    {"type": "string", "enum": ["", "é", 'q"', "back\\slash", "line\nbreak"]},
    {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "string", "maxLength": 2}, {"type": "null"}]},
    {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "exclusiveMinimum": 0}},
                "required": ["kind", "r"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "box"}, "w": {"type": "number"}, "h": {"type": "number"}},
                "required": ["kind", "w", "h"],
            },
        ]
    },
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 9}, "b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 3},
                },
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    },
    {
        "$defs": {
            "expr": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/call"}]},
            "call": {
                "type": "array",
                "prefixItems": [{"enum": ["+", "*"]}, {"$ref": "#/$defs/expr"}, {"$ref": "#/$defs/expr"}],
                "minItems": 3,
                "items": False,
            },
        },
        "$ref": "#/$defs/expr",
    },
    {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False},
    {
        "type": "object",
        "patternProperties": {"_id$": {"type": "string"}},
        "additionalProperties": {"type": "boolean"},
    },
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}, "minProperties": 1},
    {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "null"}, "required": ["a"]},
    {"type": "integer", "minimum": -17, "maximum": 203},
    {"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 10000},
    {"type": "integer", "minimum": 0},
    {"type": "integer", "maximum": -5},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": 1000000},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
    {"type": "string", "pattern": r"^\S+@\S+\.[a-z]{2,}$"},
    {"type": "string", "pattern": "^(0|[1-9][0-9]*)$"},
    {"type": "string", "pattern": r"^v?\d+(\.\d+){0,2}$"},
    {"type": "string", "pattern": r"^\+?[0-9 ()-]{5,}$"},
    {"type": "string", "pattern": "^$"},
    {"type": "string", "pattern": "colou?r"},
    {"type": "array", "items": {"type": "string", "pattern": "ab?c"}, "minItems": 1, "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "null"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"const": "a"}], "items": False},
    {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "array", "maxItems": 1}},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": ["object", "null"], "properties": {"deep": {"type": ["array", "null"], "items": {"type": ["integer", "null"]}}}},
    {
        "type": "object",
        "properties": {
            "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
            "to": {"type": "string", "format": "email"},
            "ip": {"oneOf": [{"type": "string", "format": "ipv4"}, {"type": "null"}]},
            "id": {"type": "string", "format": "uuid"},
        },
        "required": ["when", "to", "id"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {"": {"type": "integer"}, 'q"': {"type": "null"}, "é\n": {"type": "boolean"}}},
    {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(12)}, "required": ["p3", "p11"]},
    {"type": "object", "required": ["free"], "additionalProperties": {"type": "string"}},
    {"type": "array", "items": True, "maxItems": 3},
    {},
    True,
]
SMALL = ["string", "integer", "boolean", "enum", "integers", "length"]
LARGE = SMALL + ["number", "null", "const", "array", "tuple", "object", "anyOf", "allOf", "pattern", "format", "types",
                 "numbers", "ref"]  # fmt: skip
PATTERNS = ["^[a-z]+$", r"^\d{3}-\d{4}$", "ab?c", "^(foo|bar)[0-9]{1,3}$", "^[^x]{2,5}$", "[A-Z]"]
FORMATS = ["date", "date-time", "time", "email", "uuid", "ipv4", "uri", "hostname"]
VALUES = [1, 2.5, "a", 'b"c', "é", None, True, [1, 2], {"x": 1}]


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def schema(self):
        made = self.part(0)
        if "$ref" in json.dumps(made):
            made = {**made, "$defs": {"t": self.random.choice([NODE, {"type": "integer"}])}}
        return made

    def part(self, depth):
        kind = self.random.choice(LARGE if depth < 3 else SMALL)
        make = getattr(self, kind, None)
        return make(depth) if make else {"type": kind}

    def enum(self, _):
        return {"enum": self.random.sample(VALUES, self.random.randint(1, 4))}

    def const(self, _):
        return {"const": self.random.choice(VALUES)}

    def array(self, depth):
        made = {"type": "array", "items": self.part(depth + 1)}
        if self.random.random() < 0.5:
            made["minItems"] = self.random.randint(0, 2)
        if self.random.random() < 0.5:
            made["maxItems"] = self.random.randint(2, 4)
        return made

    def tuple(self, depth):
        items = [self.part(depth + 1) for _ in range(self.random.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": self.random.choice([False, {"type": "integer"}])}

    def object(self, depth):
        names = self.random.sample(["a", "b", "name", "x y", "é", "long_name"], self.random.randint(0, 4))
        made = {
            "type": "object",
            "properties": {name: self.part(depth + 1) for name in names},
            "required": [name for name in names if self.random.random() < 0.6],
        }
        if self.random.random() < 0.7:
            made["additionalProperties"] = self.random.choice([False, True, {"type": "integer"}])
        if self.random.random() < 0.2:
            made["minProperties"] = 1
        return made

    def anyOf(self, depth):
        return {"anyOf": [self.part(depth + 1) for _ in range(self.random.randint(1, 3))]}

    def allOf(self, _):
        low, high = self.random.randint(-5, 5), self.random.randint(6, 500)
        return {"allOf": [{"type": "integer", "minimum": low}, {"maximum": high}]}

    def length(self, _):
        low = self.random.randint(0, 4)
        return {"type": "string", "minLength": low, "maxLength": low + self.random.randint(0, 6)}

    def pattern(self, _):
        return {"type": "string", "pattern": self.random.choice(PATTERNS)}

    def format(self, _):
        return {"type": "string", "format": self.random.choice(FORMATS)}

    def types(self, _):
        names = ["string", "integer", "null", "boolean", "array", "object"]
        return {"type": self.random.sample(names, 2)}

    def integers(self, _):
        low = self.random.randint(-1000, 1000)
        return {
            "type": "integer",
            self.random.choice(["minimum", "exclusiveMinimum"]): low,
            self.random.choice(["maximum", "exclusiveMaximum"]): low + self.random.randint(2, 5000),
        }

    def numbers(self, _):
        low = self.random.randint(-50, 50) / 4
        return {"type": "number", "minimum": low, "maximum": low + self.random.randint(1, 40) / 8}

    def ref(self, _):
        return {"$ref": "#/$defs/t"}


def start(weft):
    server = subprocess.Popen([weft, "serve", "--port", "0", "--device", "fake"], stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        ready = re.search(r"startup complete.*http://127.0.0.1:(\d+)", line)
        if ready:
            threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
            return server, http.client.HTTPConnection("127.0.0.1", int(ready[1]), timeout=60)
    raise SystemExit("the server did not start")


def ask(connection, schema, seed):
    body = {
        "messages": [{"role": "user", "content": "schema"}],
        "seed": seed,
        "max_tokens": 300,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


class Cli:
    """grammar_cli: which of the texts the grammar of a schema accepts; None where the schema is refused."""

    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def accepted(self, schema, texts):
        line = json.dumps({"schema": json.dumps(schema), "texts": texts})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline()).get("accepted")


def check_instances(cli, schemas, seed):
    """Valid instances are accepted, invalid ones are not."""
    instances = Instances(seed)
    accepted = rejected = 0
    bad = []
    for schema in schemas:
        validator = jsonschema.Draft202012Validator(schema)
        drawn = instances.some(schema, 10)
        fitting = [text for value in drawn if validator.is_valid(value) for text in variants(schema, value)]
        broken = [near for value in drawn[:4] for near in instances.broken(value)]
        others = [json.dumps(near) for near in broken if not validator.is_valid(near)]
        verdicts = cli.accepted(schema, fitting + others)
        if verdicts is None:
            continue  # counted by the walks
        for text, good in zip(fitting, verdicts):
            accepted += good
            if not good:
                bad.append(f"{json.dumps(schema)}\n  {text!r}\n  is valid and not accepted")
        for text, taken in zip(others, verdicts[len(fitting) :]):
            rejected += not taken
            if taken:
                bad.append(f"{json.dumps(schema)}\n  {text!r}\n  is accepted and not valid")
    return accepted, rejected, bad


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--weft", required=True)
    options.add_argument("--cli", required=True)
    options.add_argument("--schemas", type=int, default=1200)
    options.add_argument("--samples", type=int, default=6)
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    maker = Maker(args.seed)
    schemas = (WRITTEN + [maker.schema() for _ in range(args.schemas)])[: args.schemas]
    accepted, rejected, wrong = check_instances(Cli(args.cli), schemas, args.seed)
    for one in wrong[:5]:
        print(one)
    print(f"instances: {accepted} valid ones accepted, {rejected} others rejected, {len(wrong)} otherwise")
    server, connection = start(args.weft)
    valid = cut = refused = 0
    bad = []
    for number, schema in enumerate(schemas):
        for sample in range(args.samples):
            status, answer = ask(connection, schema, number * args.samples + sample)
            if status == 400 and answer["error"]["param"]:
                refused += 1  # by name; such schemas are rare here, see below
                break
            choice = answer["choices"][0] if status == 200 else None
            if choice and choice["finish_reason"] == "length":
                cut += 1
                continue
            text = choice["message"]["content"] if choice else answer
            try:
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
                valid += 1
            except Exception as error:  # whatever it is, the answer is not valid
                bad.append(f"{json.dumps(schema)}\n  {text!r}\n  {error}")
    server.terminate()
    if server.wait(20) != 0:
        bad.append(f"the server ended with {server.returncode}")
    for one in bad[:5]:
        print(one)
    print(f"schemas: {args.schemas} schemas, {valid} valid answers, {cut} cut off, {refused} schemas refused, {len(bad)} bad")
    few = valid < args.schemas * args.samples // 2 or refused > args.schemas // 20 or accepted < args.schemas * 10
    if few:
        print("too few answers were complete to mean something")
    return 1 if wrong or bad or few else 0


if __name__ == "__main__":
    sys.exit(main())
