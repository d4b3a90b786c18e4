"""The prompts of the long-context task: python3 tools/long_context/task_test.py"""
import unittest

import task as T


class Prompts(unittest.TestCase):
    def test_a_question_is_about_one_record_of_the_text(self):
        for near in (False, True):
            for length in (512, 4096, 4097):
                ids, answers = T.prompt(length, 32, 64, near, 5)
                self.assertEqual(len(ids), length)
                self.assertEqual(len(answers), 32)
                body = length - 3 * 32
                for at in answers:
                    self.assertEqual(ids[at - 2], T.NEAR if near else T.FAR)
                    places = [i for i in range(body) if ids[i] == ids[at - 1]]
                    self.assertEqual(len(places), 1)
                    self.assertEqual(ids[places[0] + 1], ids[at])
                    if near:
                        self.assertGreaterEqual(places[0], body - T.NEAR_TOKENS - 1)

    def test_prompts_are_functions_of_their_seed(self):
        self.assertEqual(T.prompt(600, 8, 20, False, "a"), T.prompt(600, 8, 20, False, "a"))
        self.assertNotEqual(T.prompt(600, 8, 20, False, "a"), T.prompt(600, 8, 20, False, "b"))


if __name__ == "__main__":
    unittest.main()
