"""What the tests of ``prepare`` share: rows of problem sets as the originals have them, made here."""

import base64
import json
import pickle
import zlib

from atgrpo_jax.tasks.code import code_problems
from atgrpo_jax.tools.prepare import convert

APPS = {
    "problem_id": 7, "question": "Add one.", "starter_code": "", "solutions": '["print(int(input()) + 1)"]',
    "input_output": '{"inputs": ["1\\n", "2\\n"], "outputs": ["2\\n", "3\\n"]}',
}  # fmt: skip
APPS_CALL = APPS | {
    "input_output": '{"fn_name": "inc", "inputs": [[1], [2]], "outputs": [[2], [3]]}',
    "solutions": '["def inc(x): return x + 1"]',
}
CONTEST = {
    "name": "1_A. Sum", "description": "Add.", "input_file": "",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["3 4\n"], "output": ["7\n"]},
    "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(sum(map(int, input().split())))"]},
}  # fmt: skip
HIDDEN = json.dumps([{"input": "3", "output": "4", "testtype": "stdin"}])
LCB = {
    "question_id": "abc1", "question_title": "One more", "question_content": "Add one.", "starter_code": "",
    "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]', "metadata": "{}",
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(HIDDEN))).decode(),
}  # fmt: skip
LCB_CALL = LCB | {
    "public_test_cases": '[{"input": "[1, 2]\\n3", "output": "6", "testtype": "functional"}]',
    "private_test_cases": "[]", "metadata": '{"func_name": "total"}',
}  # fmt: skip


def written(tmp_path, source, *rows):
    (tmp_path / "in.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    done = convert(source, [str(tmp_path / "in.jsonl")], str(tmp_path / "data" / "out.jsonl.gz"))
    return done.written, done.left_out


def problems(tmp_path):
    return code_problems.read(str(tmp_path / "data" / "out.jsonl.gz"))
