"""check_layers.py fires on each kind of breach, and on nothing else."""
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import check_layers  # noqa: E402


class Layers(unittest.TestCase):
    def breaches(self, files):
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                full = os.path.join(root, "src", path)
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, "w", encoding="utf-8") as file:
                    file.write(text)
            return check_layers.check(root)

    def assert_fires(self, where, reason, files):
        found = self.breaches(files)
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(where + ": "), found)
        self.assertIn(reason, found[0])

    def test_rows_only_look_down(self):
        order = list(check_layers.FLOORS)
        for floor, allowed in check_layers.FLOORS.items():
            for other in allowed:
                if floor != "app":
                    self.assertLess(order.index(other), order.index(floor), (floor, other))

    def test_each_pair_of_floors(self):
        floors = check_layers.FLOORS
        files = {f"{floor}/to_{other}.cc": f'// one\n#include "{other}/b.h"\n' for floor in floors for other in floors}
        files.update({f"{other}/b.h": "" for other in floors})
        expected = {f"src/{floor}/to_{other}.cc:2: {floor} may not include {other}"
                    for floor, allowed in floors.items() for other in floors if other != floor and other not in allowed}
        self.assertEqual({breach.split(";")[0] for breach in self.breaches(files)}, expected)

    def test_pure_floors_see_no_device(self):
        for floor in ("cache", "sched", "engine"):
            self.assertFalse({"device", "tensor", "kernels"} & set(check_layers.FLOORS[floor]), floor)

    def test_unknown_floor_and_relative_include(self):
        self.assert_fires("src/misc/a.cc:1", "no floor", {"misc/a.cc": ""})
        self.assert_fires("src/base/a.cc:1", "not written from src/", {"base/a.cc": '#include "b.h"\n'})

    def test_an_include_in_a_comment_is_none(self):
        self.assertEqual(self.breaches({"base/a.cc": '// #include "app/b.h"\n/*\n#include "app/b.h"\n*/\n'}), [])

    def test_odd_spacing_does_not_hide_an_include(self):
        self.assert_fires("src/base/a.cc:3", "may not include app", {"base/a.cc": '\n\n  #  include  "app/b.h"\n'})

    def test_test_support_is_for_tests(self):
        self.assertEqual(self.breaches({"nn/a_test.cc": '#include "tests/support/oracle.h"\n'}), [])
        self.assert_fires("src/nn/a.cc:1", "not written from src/", {"nn/a.cc": '#include "tests/support/oracle.h"\n'})

    def test_third_party_parts_stay_out_of_headers(self):
        for header in ("nlohmann/json.hpp", "boost/beast.hpp", "CLI/CLI.hpp", "spdlog/spdlog.h"):
            text = f"#include <{header}>\n"
            self.assert_fires("src/text/a.h:1", "never in a header", {"text/a.h": text})
            self.assertEqual(self.breaches({"text/a.cc": text}), [])

    def test_std_regex(self):
        self.assert_fires("src/text/a.cc:1", "std::regex", {"text/a.cc": "#include <regex>\n"})

    def test_cuda_conditions(self):
        for line in ("#if WEFT_CUDA", "#ifdef __CUDACC__", "# ifndef __CUDA_ARCH__", "#if defined(__NVCC__)"):
            self.assert_fires("src/nn/a.cc:2", "#if on CUDA", {"nn/a.cc": f"\n{line}\n#endif\n"})
            self.assertEqual(self.breaches({"device/a.cc": f"{line}\n#endif\n"}), [])
            self.assertEqual(self.breaches({"kernels/cuda/a.cuh": f"{line}\n#endif\n"}), [])
        self.assert_fires("src/kernels/cpu/a.cc:1", "#if on CUDA", {"kernels/cpu/a.cc": "#ifdef WEFT_CUDA\n#endif\n"})
        self.assertEqual(self.breaches({"nn/a.cc": "// #ifdef WEFT_CUDA\n#ifdef NDEBUG\n#endif\n"}), [])

    def test_cuda_code_includes_the_toolkit_alone(self):
        good = "".join(f"#include <{h}>\n" for h in ("cuda_runtime.h", "cuda_bf16.h", "cub/block/block_reduce.cuh", "cstdint",
                                                     "cuda/std/array", "mma.h", "stdint.h"))
        self.assertEqual(self.breaches({"kernels/cuda/a.cu": good, "device/a.cu": good}), [])
        for header in ("fmt/core.h", "cutlass/gemm.h", "nlohmann/json.hpp"):
            self.assert_fires("src/kernels/cuda/a.cu:1", "not <" + header, {"kernels/cuda/a.cu": f"#include <{header}>\n"})
        self.assert_fires("src/kernels/cuda/a.cu:1", "through base/b.h:2",
                          {"kernels/cuda/a.cu": '#include "base/b.h"\n', "base/b.h": "\n#include <fmt/core.h>\n"})

    def test_cuda_tests_may_use_googletest(self):
        text = "#include <gtest/gtest.h>\n"
        self.assertEqual(self.breaches({"kernels/cuda/a_test.cu": text}), [])
        self.assert_fires("src/kernels/cuda/a.cu:1", "not <gtest", {"kernels/cuda/a.cu": text})

    def test_getenv_lives_in_app(self):
        for call in ("getenv(\"X\")", "std::getenv (\"X\")", "secure_getenv(\"X\")"):
            text = f"const char* x = {call};\n"
            self.assert_fires("src/base/a.cc:1", "getenv", {"base/a.cc": text})
            self.assertEqual(self.breaches({"app/a.cc": text}), [])
        self.assertEqual(self.breaches({"base/a.cc": "// getenv(x)\nconst char* x = \"getenv(\";\n"}), [])


if __name__ == "__main__":
    unittest.main()
