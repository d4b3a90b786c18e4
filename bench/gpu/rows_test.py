"""Tests of rows.py. usage: python3 bench/gpu/rows_test.py"""
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import rows  # noqa: E402


def row(us, kernel="gemm", shape="4096x4096x4096", **more):
    return {"kernel": kernel, "shape": shape, "dtype": "bf16", "us": us, "machine": "H100", **more}


def by_key(*list_of_rows):
    return {rows.key(r): r for r in list_of_rows}


class Rows(unittest.TestCase):
    def baseline(self, **more):
        return {"machine": "H100", "tolerance": 0.1, "rows": [row(100.0, ratio=1.1, share=0.8)], **more}

    def test_slower_than_accepted(self):
        self.assertEqual(rows.check(by_key(row(109.9)), self.baseline(), False), ([], []))
        faults, _ = rows.check(by_key(row(110.1)), self.baseline(), False)
        self.assertEqual(len(faults), 1)
        self.assertIn("accepted 100.00", faults[0])

    def test_missing_rows(self):
        other = by_key(row(1.0, shape="8x8x8"))
        self.assertEqual(len(rows.check(other, self.baseline(), False)[0]), 1)
        self.assertEqual(rows.check(other, self.baseline(), True)[0], [])

    def test_another_machine_is_compared_by_ratio_and_share(self):
        slow = row(300.0, ratio=1.05, share=0.78) | {"machine": "H200"}
        self.assertEqual(rows.check(by_key(slow), self.baseline(), False)[0], [])
        slow["ratio"] = 0.9
        self.assertIn("ratio", rows.check(by_key(slow), self.baseline(), False)[0][0])

    def test_bars(self):
        bars = [{"kernel": "gemm", "shape": "4096*", "dtype": "bf16", "ratio": 0.97}]
        _, missed = rows.check(by_key(row(100.0, ratio=0.96)), self.baseline(bars=bars), False)
        self.assertEqual(len(missed), 1)
        _, missed = rows.check(by_key(row(100.0)), self.baseline(bars=bars), False)
        self.assertEqual(len(missed), 1)  # not measured beside its peer
        for kept in (row(100.0, ratio=0.97), row(100.0, shape="8x8x8"), row(100.0, kernel="gemm_fp8")):
            self.assertEqual(rows.check(by_key(kept), self.baseline(bars=bars), True)[1], [])

    def test_join_takes_the_fastest_peer_of_the_same_row(self):
        run = by_key(row(100.0), row(50.0, kernel="moe", peer="own", peer_us=1.0, ratio=0.02))
        peers = [
            {"kernel": "gemm", "shape": "4096x4096x4096", "dtype": "bf16", "peer": "slow", "peer_us": 200.0},
            {"kernel": "gemm", "shape": "4096x4096x4096", "dtype": "bf16", "peer": "fast", "peer_us": 80.0},
            {"kernel": "gemm", "shape": "8x8x8", "dtype": "bf16", "peer": "other", "peer_us": 1.0},
            {"kernel": "gemm", "shape": "4096x4096x4096", "dtype": "bf16", "peer": "broken", "error": "x"},
            {"kernel": "moe", "shape": "4096x4096x4096", "dtype": "bf16", "peer": "x", "peer_us": 9.0},
        ]
        self.assertEqual(rows.join(run, peers), 1)
        gemm, moe = run.values()
        self.assertEqual((gemm["peer"], gemm["ratio"]), ("fast", 0.8))
        self.assertEqual(moe["peer"], "own")

    def test_accept_and_files(self):
        with tempfile.TemporaryDirectory() as directory:
            run, base = os.path.join(directory, "run"), os.path.join(directory, "base.json")
            rows.write_rows(run, by_key(row(90.0), row(5.0, kernel="sample")))
            with open(base, "w", encoding="utf-8") as file:
                file.write(rows.dump_baseline(self.baseline(bars=[{"kernel": "gemm", "ratio": 1}])))
            tool = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "rows.py")]
            self.assertEqual(subprocess.run([*tool, "accept", run, base], capture_output=True).returncode, 0)
            accepted = rows.load_baseline(base)
            self.assertEqual([r["us"] for r in accepted["rows"]], [90.0, 5.0])
            self.assertEqual(accepted["bars"], [{"kernel": "gemm", "ratio": 1}])
            self.assertEqual(subprocess.run([*tool, "check", run, base], capture_output=True).returncode, 0)
            rows.write_rows(run, by_key(row(120.0), row(5.0, kernel="sample")))
            self.assertEqual(subprocess.run([*tool, "check", run, base], capture_output=True).returncode, 1)
            with open(run, "a", encoding="utf-8") as file:
                file.write("{broken\n")
            self.assertNotEqual(subprocess.run([*tool, "table", run], capture_output=True).returncode, 0)

    def test_rows_come_back_as_they_were(self):
        written = [row(1.0, shape=str(i), share=0.5, date=f"2026-11-2{int(i == 1)}") for i in range(3)]
        del written[1]["share"]
        text = rows.dump_baseline(self.baseline(rows=written))
        self.assertEqual((text.count("share"), text.count("2026-11-20")), (1, 1))
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "base.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            self.assertEqual(rows.load_baseline(path)["rows"], written)

    def test_machines_are_not_mixed(self):
        with self.assertRaises(SystemExit):
            rows.accept(by_key(row(1.0), row(1.0, kernel="x", machine="H200") | {"machine": "H200"}), self.baseline())


class Committed(unittest.TestCase):
    def test_baseline_is_valid(self):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "baseline", "h100.json")
        if not os.path.exists(path):
            self.skipTest("nothing is accepted yet")
        baseline = rows.load_baseline(path)
        self.assertTrue(baseline["rows"])
        seen = set()
        for accepted in baseline["rows"]:
            self.assertLessEqual({"kernel", "shape", "dtype", "us", "date"}, set(accepted))
            self.assertLessEqual(set(accepted), set(rows.FIELDS) - {"machine"})
            self.assertNotIn(rows.key(accepted), seen)
            seen.add(rows.key(accepted))
            if "ratio" in accepted:
                self.assertAlmostEqual(accepted["ratio"], accepted["peer_us"] / accepted["us"], delta=0.01)
        kernels = {accepted["kernel"] for accepted in baseline["rows"]}
        for bar in baseline["bars"]:
            self.assertIn(bar["kernel"], kernels)


if __name__ == "__main__":
    unittest.main()
