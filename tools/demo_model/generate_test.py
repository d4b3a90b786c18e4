"""The generator reproduces the stored held-out set: same questions, same answers, same pictures."""
import json
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
EVAL = os.path.join(HERE, "..", "..", "models", "demo", "eval")
sys.path.insert(0, HERE)

import generate  # noqa: E402


def texts(messages):
    """The words of a conversation; pictures are stored as files and compared apart."""
    for message in messages:
        parts = message.get("content") or ""
        yield parts if isinstance(parts, str) else [p["text"] for p in parts if p["type"] == "text"]


class HeldOut(unittest.TestCase):
    def setUp(self):
        with open(os.path.join(EVAL, "heldout.jsonl"), encoding="utf-8") as lines:
            self.rows = [json.loads(line) for line in lines]

    def test_every_item_comes_out_again(self):
        for row in self.rows:
            task, index = row["id"].rsplit("-", 1)
            item = generate.eval_item(task, int(index))
            with self.subTest(row["id"]):
                self.assertEqual(item["expected"], row["expected"])
                self.assertEqual(item["thinking"], row.get("enable_thinking", False))
                self.assertEqual(list(texts(item["messages"])), list(texts(row["messages"])))

    def test_the_expected_answer_is_graded_right_and_another_wrong(self):
        for row in self.rows:
            if row["check"] in ("exact", "json"):
                with self.subTest(row["id"]):
                    self.assertTrue(generate.grade(row["check"], row["expected"], row["expected"]))
                    self.assertFalse(generate.grade(row["check"], row["expected"], row["expected"] + "x"))

    def test_pictures(self):
        from PIL import Image  # Debian: python3-pil
        for row in self.rows:
            if not row["task"].startswith("picture") or not row["id"].endswith("-7"):
                continue
            task, index = row["id"].rsplit("-", 1)
            for number, scene in enumerate(generate.eval_item(task, int(index))["images"]):
                with Image.open(os.path.join(EVAL, "images", f"{row['id']}-{number}.png")) as stored:
                    self.assertEqual(generate.render(scene).tobytes(), stored.convert("RGB").tobytes(), row["id"])


if __name__ == "__main__":
    unittest.main()
