"""Rows of kernel measurements (JSON lines) and the accepted ones (bench/baseline/*.json).

join RUN PEERS       the fastest peer of the same kernel and shape is put beside each row of RUN that has none
table RUN            the rows for reading
check RUN BASELINE   exit code 1 if a row is slower than accepted, misses its bar, or is missing (--partial: may miss)
accept RUN BASELINE  the rows of RUN become the accepted ones; bars stay

A baseline's "machine" is that of all its rows, its "date" that of the rows without one. They are lines of comma-separated
values under the names of "columns", with nothing between the commas where a row has no such field.

A row is slower than accepted beyond the baseline's "tolerance" (a fraction) of its `us`. On another machine than the
baseline's, `us` means nothing: then `ratio` and `share` are compared. A bar ("bars" of the baseline: a kernel, a
pattern of shapes, and the least `ratio`, `share`, `tflops` or `gbps`) is what the issue asks, whatever was accepted.
"""
import argparse
import csv
import fnmatch
import io
import json
import sys

FIELDS = ["kernel", "shape", "dtype", "us", "gbps", "tflops", "share", "peer", "peer_us", "ratio", "machine", "date"]
TEXTS = {"kernel", "shape", "dtype", "peer", "machine", "date"}


def key(row):
    return row["kernel"], row["shape"], row.get("dtype", "")


def read_rows(path):
    """The rows of a file; of several with one key the last."""
    rows = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows[key(row)] = row
            except (ValueError, KeyError) as error:
                sys.exit(f"{path}:{number}: no row: {error}")
    return rows


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows.values():
            file.write(json.dumps({name: row[name] for name in FIELDS if name in row}) + "\n")


def join(rows, peer_lines):
    """Peers of a kernel may be in another dtype only if no row has theirs."""
    best = {}
    for peer in peer_lines:
        if "peer_us" not in peer:
            continue
        at = key(peer)
        if at not in best or peer["peer_us"] < best[at]["peer_us"]:
            best[at] = peer
    joined = 0
    for at, row in rows.items():
        if "peer_us" in row or at not in best:
            continue
        row["peer"] = best[at]["peer"]
        row["peer_us"] = best[at]["peer_us"]
        row["ratio"] = round(best[at]["peer_us"] / row["us"], 3)
        joined += 1
    return joined


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.startswith("{")]


def table(rows):
    for row in rows.values():
        cells = [f"{row['kernel']:<28} {row['shape']:<34} {row.get('dtype', ''):<5} {row['us']:>10.2f} us"]
        for name, form, unit in (("gbps", "7.0f", "GB/s"), ("tflops", "7.1f", "TFLOP/s"), ("share", "6.3f", "of the bound")):
            if name in row:
                cells.append(f"{row[name]:{form}} {unit}")
        if "ratio" in row:
            cells.append(f"{row['ratio']:.3f}x {row['peer']}")
        yield "  ".join(cells)


def slower(row, accepted, same_machine, tolerance):
    """What is worse than accepted, or None."""
    if same_machine:
        if row["us"] > accepted["us"] * (1 + tolerance):
            return f"{row['us']:.2f} us, accepted {accepted['us']:.2f}"
        return None
    for name in ("ratio", "share"):
        if name in row and name in accepted and row[name] < accepted[name] * (1 - tolerance):
            return f"{name} {row[name]:.3f}, accepted {accepted[name]:.3f}"
    return None


def missed_bars(row, bars):
    for bar in bars:
        if row["kernel"] != bar["kernel"] or not fnmatch.fnmatch(row["shape"], bar.get("shape", "*")):
            continue
        if "dtype" in bar and row.get("dtype") != bar["dtype"]:
            continue
        for name in ("ratio", "share", "tflops", "gbps"):
            if name in bar and row.get(name, 0) < bar[name]:
                yield f"{name} {row.get(name, 0)} is below the bar {bar[name]}"


def check(rows, baseline, partial):
    """(faults, missed bars) as lines."""
    tolerance = baseline.get("tolerance", 0.1)
    faults, bars = [], []
    for accepted in baseline["rows"]:
        row = rows.get(key(accepted))
        name = " ".join(key(accepted))
        if row is None:
            if not partial:
                faults.append(f"{name}: not measured")
            continue
        same_machine = row.get("machine") == baseline.get("machine")
        if worse := slower(row, accepted, same_machine, tolerance):
            faults.append(f"{name}: {worse}")
    for row in rows.values():
        bars += [f"{' '.join(key(row))}: {missed}" for missed in missed_bars(row, baseline.get("bars", []))]
    return faults, bars


def load_baseline(path):
    try:
        with open(path, encoding="utf-8") as file:
            baseline = json.load(file)
    except FileNotFoundError:
        return {"tolerance": 0.1, "bars": [], "rows": []}
    columns, date = baseline.pop("columns"), baseline.pop("date", "")
    rows = []
    for values in csv.reader(baseline["rows"]):
        row = dict(zip(columns, values, strict=True))
        row["date"] = row.get("date") or date
        rows.append({name: value if name in TEXTS else float(value) for name, value in row.items() if value})
    return {**baseline, "rows": rows}


def accept(rows, baseline):
    machines = {row.get("machine") for row in rows.values()}
    if len(machines) != 1:
        sys.exit(f"rows of {len(machines)} machines can't be one baseline")
    measured = {key(row): row for row in baseline["rows"]}
    for at, row in rows.items():
        measured[at] = {name: value for name, value in row.items() if name != "machine"}  # the head's
    return {**baseline, "machine": machines.pop(), "rows": list(measured.values())}


def dump_baseline(baseline):
    """Readable diffs: a row a line; the commonest date once, if all have one."""
    dates = [row["date"] for row in baseline["rows"] if "date" in row]
    common = max(sorted(set(dates)), key=dates.count) if dates and len(dates) == len(baseline["rows"]) else ""
    columns = [name for name in FIELDS if any(name in row for row in baseline["rows"])]
    head = {name: value for name, value in baseline.items() if name not in ("rows", "bars")}
    head = {**head, **({"date": common} if common else {}), "columns": columns}
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    text = io.StringIO()
    values = [[row.get(name, "") for name in columns] for row in baseline["rows"]]
    csv.writer(text, lineterminator="\n").writerows([["" if value == common else value for value in row] for row in values])
    for name, listed in (("bars", baseline.get("bars", [])), ("rows", text.getvalue().splitlines())):
        items = ",\n".join("    " + json.dumps(item, separators=(",", ":")) for item in listed)
        lines.append(f'  "{name}": [\n{items}\n  ]' + ("," if name == "bars" else ""))
    return "{\n" + "\n".join(lines) + "\n}\n"


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["join", "table", "check", "accept"])
    parser.add_argument("run")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--partial", action="store_true", help="rows of the baseline may be missing")
    options = parser.parse_args(arguments)
    if options.command != "table" and not options.other:
        parser.error(f"{options.command} needs two files")
    rows = read_rows(options.run)
    if options.command == "join":
        print(f"{join(rows, read_lines(options.other))} of {len(rows)} rows got a peer")
        write_rows(options.run, rows)
    elif options.command == "table":
        print("\n".join(table(rows)))
    elif options.command == "accept":
        baseline = accept(rows, load_baseline(options.other))
        with open(options.other, "w", encoding="utf-8") as file:
            file.write(dump_baseline(baseline))
        print(f"{len(rows)} rows accepted, {len(baseline['rows'])} in all")
    else:
        faults, bars = check(rows, load_baseline(options.other), options.partial)
        for line in bars:
            print("below its bar:", line)
        for line in faults:
            print("WORSE:", line)
        print(f"{len(rows)} rows, {len(faults)} worse than accepted, {len(bars)} bars missed")
        return 1 if faults else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
