"""Instances for JSON schemas: `Instances(seed).some(schema)` draws values that are meant to fit, with members in the
order of the schema; `variants(schema, value)` are its texts as usual printers write them, `broken(value)` others like
it that may not fit. What really fits is for jsonschema to say, but the grammar may take less where
docs/structured_output.md says so: no members or items that a schema is silent about, names and given values in one
spelling."""
import copy
import json
import random

TEXTS = ["", "a", "ab", "abc", "q\"uote", "back\\slash", "é", "漢字", "🦊🦊", "line\nbreak", "tab\t", "\u0001", "a/b", "x y z",
         "0", "true", "null", "word " * 9]  # fmt: skip
FITTING = {  # for each pattern that the schemas have
    "^[a-z]+$": ["a", "zebra"],
    r"^\d{3}-\d{4}$": ["012-3456"],
    "ab?c": ["ac", "xxabcyy", "a\nabc"],
    "^(foo|bar)[0-9]{1,3}$": ["foo1", "bar999"],
    "^[^x]{2,5}$": ["ab", "a\"b\\c", "🦊é漢"],
    "[A-Z]": ["A", "abC", "é Q"],
    "^x_": ["x_", "x_1", "x_é"],
    "_id$": ["_id", "user_id"],
    r"^\S+@\S+\.[a-z]{2,}$": ["me@example.org"],
    "^(0|[1-9][0-9]*)$": ["0", "17"],
    r"^v?\d+(\.\d+){0,2}$": ["1", "v2.3", "10.20.30"],
    r"^\+?[0-9 ()-]{5,}$": ["+49 (0) 123-45", "12345"],
    "^$": [""],
    "colou?r": ["color", "the colours"],
}
FORMATS = {
    "date": ["2026-11-21", "2024-02-29", "0001-01-01"],
    "date-time": ["2026-11-21T10:20:30Z", "1999-12-31T23:59:59.123+01:00"],
    "time": ["10:20:30Z", "23:59:59.5-08:00"],
    "email": ["me@example.org", "a.b+c@sub.example.com"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-426614174000"],
    "ipv4": ["127.0.0.1", "255.255.255.255", "0.0.0.0"],
    "ipv6": ["::1", "2001:db8::8a2e:370:7334"],
    "uri": ["https://example.org/a?b=c#d", "urn:isbn:0451450523", "http://localhost:8000/x", "http://127.0.0.1/",
            "mailto:me@example.org"],
    "hostname": ["example.org", "a-b.c.de", "localhost"],
    "duration": ["P3Y6M4DT12H30M5S", "PT1H"],
}


class Instances:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.root = {}

    def some(self, schema, count):
        self.root = schema
        return [self.value(schema, 0) for _ in range(count)]

    def chance(self, share):
        return self.random.random() < share

    def resolve(self, reference):
        node = self.root
        for token in reference.removeprefix("#").split("/")[1:]:
            node = node[token]
        return node

    def value(self, schema, depth):
        if schema is True or schema == {}:
            return self.random.choice([1, "a", None, [1], {"k": 2.5}, True, -0.5])
        if depth > 12 or schema is False:
            return None
        if "$ref" in schema:
            return self.value(self.resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        for combinator in ("anyOf", "oneOf"):
            if combinator in schema:
                rest = {key: value for key, value in schema.items() if key != combinator}
                return self.value(self.merged(rest, self.random.choice(schema[combinator])), depth + 1)
        if "allOf" in schema:
            made = {key: value for key, value in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                made = self.merged(made, part)
            return self.value(made, depth + 1)
        kind = schema.get("type", self.guess(schema))
        if isinstance(kind, list):
            kind = self.random.choice(kind)
        return getattr(self, kind)(schema, depth)

    def merged(self, one, other):
        if not isinstance(other, dict):
            return one
        if "$ref" in other:
            other = self.merged(self.resolve(other["$ref"]), {key: value for key, value in other.items() if key != "$ref"})
        made = copy.deepcopy(one)
        for key, value in other.items():
            if key == "properties" and key in made:
                for name, part in value.items():
                    made[key][name] = self.merged(made[key][name], part) if name in made[key] else part
            elif key == "required" and key in made:
                made[key] = made[key] + [name for name in value if name not in made[key]]
            elif key in ("minimum", "minLength", "minItems") and key in made:
                made[key] = max(made[key], value)
            elif key in ("maximum", "maxLength", "maxItems") and key in made:
                made[key] = min(made[key], value)
            else:
                made[key] = value
        return made

    @staticmethod
    def guess(schema):
        if any(key in schema for key in ("properties", "required", "additionalProperties", "patternProperties")):
            return "object"
        if any(key in schema for key in ("items", "prefixItems", "minItems")):
            return "array"
        if any(key in schema for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")):
            return "number"
        return "string"

    def null(self, _schema, _depth):
        return None

    def boolean(self, _schema, _depth):
        return self.chance(0.5)

    def string(self, schema, _depth):
        if "pattern" in schema:
            return self.random.choice(FITTING.get(schema["pattern"], TEXTS))
        if schema.get("format") in FORMATS:
            return self.random.choice(FORMATS[schema["format"]])
        low = schema.get("minLength", 0)
        high = schema.get("maxLength", low + 20)
        text = self.random.choice(TEXTS)
        while len(text) < low:
            text += self.random.choice("aé漢🦊\"\\\n ")
        return text[: max(high, 0)]

    def integer(self, schema, _depth):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -10**6 - 1) + 1)
        high = schema.get("maximum", schema.get("exclusiveMaximum", 10**6 + 1) - 1)
        low, high = int(-(-low // 1)), int(high // 1)
        if low > high:
            return low
        return self.random.choice([low, high, self.random.randint(low, high)])

    def number(self, schema, depth):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1000))
        high = schema.get("maximum", schema.get("exclusiveMaximum", 1000))
        exact = [edge for key, edge in (("minimum", low), ("maximum", high)) if key in schema]
        drawn = [round(self.random.uniform(low, high), digits) or 0 for digits in (0, 1, 3, 6)]  # not -0.0
        return self.random.choice(exact + drawn)

    def array(self, schema, depth):
        first = schema.get("prefixItems", [])
        items = schema.get("items", not first)
        low = schema.get("minItems", 0)
        high = schema.get("maxItems", max(low, len(first)) + 2)
        if items is False:
            high = min(high, len(first))
        count = self.random.randint(low, max(low, high))
        if depth > 8:
            count = low
        return [self.value(first[i] if i < len(first) else items, depth + 1) for i in range(count)]

    def object(self, schema, depth):
        declared = schema.get("properties", {})
        required = schema.get("required", [])
        made = {}
        for name, part in declared.items():
            if name in required or self.chance(0.6 if depth < 4 else 0.1):
                made[name] = self.value(part, depth + 1)
        for name in required:
            if name not in declared:
                made[name] = self.value(schema.get("additionalProperties", True), depth + 1)
        for pattern, part in schema.get("patternProperties", {}).items():
            for name in FITTING.get(pattern, []):
                if self.chance(0.4) and name not in made:
                    made[name] = self.value(part, depth + 1)
        extra = schema.get("additionalProperties", "properties" not in schema)
        if extra is not False and "patternProperties" not in schema:
            for name in ["other", "ä ö", "k1", "name2"]:
                if self.chance(0.25) and name not in declared:
                    made[name] = self.value(extra, depth + 1)
        return made

    def broken(self, value):
        """Values near this one."""
        near = [None, 0, "x", [], {}, [value], {"a": value}]
        if isinstance(value, bool):
            near += [not value]
        elif isinstance(value, (int, float)):
            near += [value + 1, value - 1, value + 0.5, -value, value * 1000 + 7, str(value)]
        elif isinstance(value, str):
            near += [value + "x", value[:-1], "X" + value, value * 3, value.upper()]
        elif isinstance(value, list):
            near += [value + [1], value[1:], value * 2, value[::-1]]
            for at, item in enumerate(value):
                near += [value[:at] + [other] + value[at + 1 :] for other in self.sample(self.broken(item), 3)]
        elif isinstance(value, dict):
            near.append({**value, "unheard": 1})
            for name, item in value.items():
                near.append({key: part for key, part in value.items() if key != name})
                near += [{**value, name: other} for other in self.sample(self.broken(item), 3)]
        return self.sample(near, 12)

    def sample(self, values, count):
        return self.random.sample(values, min(count, len(values)))


def names(value):
    if isinstance(value, dict):
        return "".join(value) + "".join(map(names, value.values()))
    return "".join(map(names, value)) if isinstance(value, list) else ""


def variants(schema, value):
    text = json.dumps(schema, ensure_ascii=False)
    escape = (names(value) + text).isascii() and "pattern" not in text
    return [
        json.dumps(value, ensure_ascii=escape),
        json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        json.dumps(value, ensure_ascii=False, indent=2),
    ]
