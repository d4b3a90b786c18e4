"""check_size.py counts what it should, and its exceptions can only shrink."""
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import check_size  # noqa: E402

SEVEN = "int a, int b, int c, int d, int e, int f, int g"


def parameters(text):
    return {name: count for _, name, count in check_size.functions(text)}


class Functions(unittest.TestCase):
    def test_declarations_and_definitions(self):
        self.assertEqual(parameters("int f(int a, int b);"), {"f": 2})
        self.assertEqual(parameters("namespace weft { void g() { h(1, 2, 3, 4, 5, 6, 7); } int i(int); }"), {"g": 0, "i": 1})
        self.assertEqual(parameters("struct A { A(int a, int b) : a_{a}, b_(b) {} int m(float) const; int a_{3}, b_; };"),
                         {"A": 2, "m": 1})
        self.assertEqual(parameters("void f(void);"), {"f": 0})

    def test_commas_that_part_no_parameters(self):
        self.assertEqual(parameters("void f(std::map<int, std::pair<int, int>> m, int (*call)(int, int), std::array<int, 3> x = {1, 2, 3});"),
                         {"f": 3})
        self.assertEqual(parameters("template <class A, class B, class C = F<A, B>> auto f(A a, B b) -> C;"), {"f": 2})

    def test_operators(self):
        self.assertEqual(parameters("struct A { int operator()(int a, int b) const; bool operator==(const A& o) const; A& operator=(A a); };"),
                         {"operator()": 2, "operator==": 1, "operator=": 1})

    def test_no_functions(self):
        for text in ("TEST(A, B) { f(1, 2, 3); }", "int x = f(1, 2, 3, 4, 5, 6, 7);", "#define M(a, b, c, d, e, f, g) a\n",
                     "// int f(" + SEVEN + ");\n", "struct Op { Op<void(int, int, int, int, int, int, int)> op; };"):
            self.assertFalse([c for c in parameters(text).values() if c > 6], text)

    def test_functions_after_bodies_and_in_nested_scopes(self):
        text = "namespace a {\nint f() { if (x) { y(); } return 1; }\nclass B {\n public:\n  void g(" + SEVEN + ");\n};\n}\n"
        self.assertEqual(list(check_size.functions(text)), [(2, "f", 0), (5, "g", 7)])

    def test_line_of_a_definition_with_attributes(self):
        text = 'extern "C" {\n[[nodiscard]] static inline int f(int a,\n  int b) noexcept(true) { return 0; }\n}\n'
        self.assertEqual(list(check_size.functions(text)), [(2, "f", 2)])

    def test_kernels(self):
        self.assertEqual(parameters("__global__ void __launch_bounds__(128, 2) kernel(int a, int b, int c) {}"), {"kernel": 3})


class Budgets(unittest.TestCase):
    def excesses(self, files, allowed=None):
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                full = os.path.join(root, path)
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, "w", encoding="utf-8") as file:
                    file.write(text)
            return check_size.check(root, allowed or {})[0]

    def test_lines(self):
        for suffix, limit in check_size.LINES.items():
            self.assertEqual(self.excesses({f"src/base/a{suffix}": "\n" * limit}), [])
            found = self.excesses({f"src/base/a{suffix}": "\n" * limit + "int x;"})
            self.assertEqual(len(found), 1)
            self.assertIn(f"src/base/a{suffix}:{limit + 1}: {limit + 1} lines", found[0])

    def test_parameters(self):
        found = self.excesses({"src/base/a.h": f"\nvoid f({SEVEN});\nvoid g(int);\n"})
        self.assertEqual(found, ["src/base/a.h:2: f has 7 parameters, at most 6: pass a struct by role"])

    def test_exceptions_hold_and_only_shrink(self):
        file = {"src/base/a.cc": "\n" * 610}
        self.assertEqual(self.excesses(file, {"src/base/a.cc": 610}), [])
        self.assertIn("lower the entry", self.excesses(file, {"src/base/a.cc": 650})[0])
        self.assertIn("610 lines, at most 605", self.excesses(file, {"src/base/a.cc": 605})[0])
        self.assertIn("remove the entry", self.excesses({"src/base/a.cc": "\n"}, {"src/base/a.cc": 610})[0])
        self.assertIn("not there", self.excesses(file, {"src/base/a.cc": 610, "src/base/b.cc": 610})[0])
        wide = {"src/base/a.cc": f"void f({SEVEN});\n"}
        self.assertEqual(self.excesses(wide, {"src/base/a.cc:f": 7}), [])
        self.assertIn("larger than needed", self.excesses(wide, {"src/base/a.cc:f": 8})[0])

    def test_the_list_stays_short(self):
        files = {f"src/base/{i}.cc": "\n" * 601 for i in range(check_size.ALLOWED_AT_MOST + 1)}
        found = self.excesses(files, {path: 601 for path in files})
        self.assertEqual(len(found), 1)
        self.assertIn("exceptions, at most", found[0])

    def test_tracked_bytes_leave_untracked_files_out(self):
        with tempfile.TemporaryDirectory() as root:
            for name, size in (("a", 1000), ("b", 50)):
                with open(os.path.join(root, name), "wb") as file:
                    file.write(b"x" * size)
            subprocess.run(["git", "init", "-q", root], check=True)
            subprocess.run(["git", "-C", root, "add", "a"], check=True)
            self.assertEqual(check_size.tracked_bytes(root), 1000)


if __name__ == "__main__":
    unittest.main()
