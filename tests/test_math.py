import json
from fractions import Fraction

import fakes
import pytest

from atgrpo_jax.common.types import Outcome
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.tasks.math.boxes import boxed
from atgrpo_jax.tasks.math.math import Math, State
from atgrpo_jax.tasks.math.math_problems import Problem, algebra, as_number, plainly_equal, plainly_same
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.check_task import check

TASK = Math()
HALF = State(Problem("1", "What is a half?", "\\frac{1}{2}"))
SEVEN = State(Problem("2", "What is 3 + 4?", "7"))


@pytest.fixture(scope="module")
def sandbox():
    made = SandboxConfig(workers=1, packages=TASK.packages, cpu_s=2, wall_s=4.0).build(TASK.warm_up)
    yield made
    assert made.replaced == 0
    made.close()


def say(sandbox, state, role, text, task=TASK):
    return fakes.say(sandbox, task, state, role, text)


def program(*lines):
    return "```python\n" + "\n".join(lines) + "\n```"


def test_made_up_sums_are_right_and_splits_share_none():
    drawn = {s: [TASK.instance(s, i) for i in range(300)] for s in ("train", "validation", "test")}
    for problem in drawn["train"]:
        assert eval(problem.question.removeprefix("What is ").removesuffix("?")) == int(problem.answer)
    assert not {p.question for p in drawn["train"]} & {p.question for p in drawn["test"]}
    assert drawn["train"] == [Math().instance("train", i) for i in range(300)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{7}", "7"),
        ("\\boxed{1} or \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{ a {b} c }", "a {b} c"),
        ("\\boxed{}", None),
        ("\\boxed{7", None),
        ("7", None),
        ("\\boxed{" + "9" * 300 + "}", None),
        ("\\boxed 5", "5"),
        ("$\\boxed 42$ is it", "42"),
        ("\\boxed 42. So", "42"),
        ("\\boxed\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxedx{5}", None),
        ("\\boxed", None),
        ("\\boxed{5}, or \\boxed{6", "5"),  # cut off
        ("\\boxed{5}, as asked in \\boxed{}", "5"),
        ("\\boxed{\\left\\{x\\right.}", "\\left\\{x\\right."),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a \\boxed{5} b}", "5"),
        ("\\boxed{\\text{so {5}}}", "\\text{so {5}}"),
        ("\\boxed{1\\\\}", "1\\\\"),  # a line's end, then the brace
    ],
)
def test_boxed(text, answer):
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("$\\boxed{1}$, $\\boxed{2}$ and $\\boxed 3$.", "1, 2, 3"),
        ("\\boxed{1}\\text{ and }\\boxed{2}", "1, 2"),
        ("\\boxed{0}. We check it. \\boxed{1}, \\boxed{2}", "1, 2"),
        ("\\boxed{1, 2}", "1, 2"),
        ("\\boxed{\\boxed{1}, \\boxed{2}}", "1, 2"),
        ("\\boxed{" + "1" * 150 + "}, \\boxed{" + "2" * 150 + "}", None),
    ],
)
def test_boxes_of_a_list(text, answer):
    assert boxed(text, several=True) == answer


def test_boxes_are_found_in_time_that_is_linear():
    """In all that a program may print: it would take hours if each box were read to the text's end."""
    for text in ("\\boxed{", "\\boxed 5 ", "{", "\\boxed{5}", "\\boxed ", "\\boxed{1} and "):
        boxed(text * (262_144 // len(text)), several=True)


def test_a_list_in_several_boxes(sandbox):
    state = State(Problem("1", "?", "1,2", multiple=True))
    assert say(sandbox, state, "reasoner", "\\boxed{2} or \\boxed{1}").reward.team == 1.0
    assert say(sandbox, SEVEN, "reasoner", "\\boxed{7} or \\boxed{8}").reward.team == 0.0
    assert say(sandbox, state, "tool", program("print([1, 2])")).reward.team == 1.0


@pytest.mark.parametrize(
    ("truth", "printed", "right"),
    [
        ("\\frac{\\pi}{4}", "sympy.pi / 4", True),
        ("x^2+1", "sympy.Symbol('x') ** 2 + 1", True),
        ("1+2i", "1 + 2 * sympy.I", True),
        ("[0,1)", "sympy.Interval.Ropen(0, 1)", True),
        ("[0,1)", "sympy.Interval(0, 1)", False),
        ("\\{1,2\\}", "sympy.FiniteSet(1, 2)", True),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "sympy.Matrix([[1, 2], [3, 4]])", True),
        ("\\frac{1}{2}", "[__import__('fractions').Fraction(1, 2)]", True),
        ("\\frac{1}{2^{99}}", "0.0", False),
        ("x = 2", "sympy.Eq(sympy.Symbol('x'), 2)", True),
        ("2", "'first line' + chr(10) + 'a\u2028b' + chr(10) + '2'", True),
    ],
)
def test_what_programs_print(sandbox, truth, printed, right):
    step = say(sandbox, State(Problem("1", "?", truth)), "tool", program("import sympy", f"print({printed})"))
    assert step.reward.team == right


@pytest.mark.slow
def test_a_sandbox_without_the_warm_up_judges_alike():
    made = SandboxConfig(workers=1, packages=TASK.packages).build()
    verdicts = [made.run_now(algebra(HALF.problem, "\\frac{1}{2}", text)) for text in ("1/2 + 0*x", "1/3")]
    made.close()
    assert [(run.end, run.stdout) for run in verdicts] == [("ok", "1\n"), ("ok", "0\n")]


def test_numbers():
    assert as_number(" 1,234.5 ") == Fraction(2469, 2) and as_number("$-3/4$") == Fraction(-3, 4)
    assert as_number("1e3") == 1000 and as_number("1/0") is None
    assert [as_number(text) for text in ("1,2", "x", "", "1" * 200, "\\pi", "1e999")] == [None] * 6
    assert plainly_same("0.333333333", "1/3") and not plainly_same("0.3333", "1/3")
    assert plainly_same("a  b", "a b") and plainly_same("x", "1") is None
    assert plainly_same("(1, 2)", "(1,2)") and plainly_same("2 1/2", "21/2") is None


def test_whole_numbers_are_the_same_exactly():
    assert not plainly_same("1000000", "1000001") and not plainly_same("1,000,000", "1000001.0")
    assert plainly_same("1000000", "1e6") and plainly_same("1000000", "1000000.0")
    assert not plainly_same("1/3", "1000000/3000001")
    assert plainly_same("1000000", "1000000.5") and plainly_same("3", "2.9999999")
    assert plainly_same("4.2", "4.3", 0.1) and plainly_same("42", "43", 1) and not plainly_same("42", "44", 1)


@pytest.mark.parametrize(
    ("truth", "answer", "same"),
    [
        ("1,3,5", "5, 1,3", True),
        ("100,200", "200,100", True),  # not 100200
        ("100,200", "100200", False),
        ("1,3,5", "\\{3,5,1\\}", True),
        ("1,3", "1 and 3", True),
        ("1,3,5", "1,3", False),
        ("1,3,5", "1,3,7", False),
        ("1,3", "1,3,3", False),
        ("(0,2),(0,-2)", "(0,-2), (0, 2)", True),
        ("(0,2),(0,-2)", "(2,0),(0,-2)", None),
        ("-2,2", "\\pm 2", True),
        ("\\frac{32}{9},\\frac{1}{2}", "0.5,\\frac{32}{9}", None),
    ],
)
def test_lists_of_answers_are_compared_in_any_order(truth, answer, same):
    assert plainly_equal(Problem("1", "?", truth, multiple=True), truth, answer) is same


@pytest.mark.parametrize(
    ("truth", "answer", "same"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{2}", "\\dfrac12", True),
        ("2x+1", "1+2x", True),
        ("(1, 2)", "(1,2)", True),
        ("[0,1)", "[0,1]", False),
        ("\\sqrt{2}", "1.414213562", True),
        ("\\sqrt{2}", "1.41", False),
        ("5", "10^{10^{10}}", False),  # would never end, or take all memory
        ("5", "\\frac{1}{0}", False),
        ("5", "__import__('os')", False),
        ("5", "\\boxed{" * 20, False),
    ],
)
def test_what_counts_as_equal(sandbox, truth, answer, same):
    state = State(Problem("1", "?", truth))
    step = say(sandbox, state, "reasoner", f"\\boxed{{{answer}}}", Math(workflow=Workflow(("reasoner",), 1)))
    assert step.solved is same and step.done


@pytest.mark.parametrize(
    ("fields", "answer", "same"),
    [
        ({"answer": "\\frac{32}{9},\\frac{1}{2}"}, "\\dfrac12, \\frac{64}{18}", True),
        ({"answer": "\\frac{32}{9},\\frac{1}{2}"}, "\\dfrac12, \\frac{1}{2}", False),
        ({"answer": "(0,2),(0,-2)"}, "(2,0),(0,-2)", False),
        ({"answer": "f(x)=-1,f(x)=x+1"}, "f(x)=1+x,f(x)=-1", True),
        ({"answer": "4.2", "multiple": False, "tolerance": 0.1}, "\\frac{43}{10}", True),
        ({"answer": "4.2", "multiple": False, "tolerance": 0.1}, "\\frac{44}{10}", False),
        ({"answer": "4.2", "multiple": False, "tolerance": 0.1}, "x", False),
    ],
)
def test_lists_and_tolerances_in_algebra(sandbox, fields, answer, same):
    problem = Problem("1", "?", **{"multiple": True} | fields)
    task = Math(workflow=Workflow(("reasoner",), 1))
    assert say(sandbox, State(problem), "reasoner", f"\\boxed{{{answer}}}", task).solved is same


def test_local_rewards_by_hand(sandbox):
    close = pytest.approx

    def local(role, text, state=SEVEN):
        step = say(sandbox, state, role, text)
        return step.reward.local, step.reward.team, step.outcome

    assert local("reasoner", "no answer") == (0.0, 0.0, Outcome.INVALID)
    assert local("reasoner", "\\boxed{8}") == (close(0.2), 0.0, Outcome.OK)
    assert local("reasoner", "\\boxed{7}") == (close(1.0), 1.0, Outcome.OK)
    assert local("tool", "no program") == (0.0, 0.0, Outcome.INVALID)
    assert local("tool", program("print(")) == (0.0, 0.0, Outcome.INVALID)
    assert local("tool", program("1 / 0")) == (close(0.1), 0.0, Outcome.INVALID)
    assert local("tool", program("7")) == (close(0.2), 0.0, Outcome.INVALID)
    assert local("tool", program("print('so')", "print(8)")) == (close(0.2), 0.0, Outcome.OK)
    assert local("tool", program("print(3 + 4)")) == (close(1.0), 1.0, Outcome.OK)
    assert local("tool", program("from sympy import Rational", "print(Rational(1, 2))"), HALF)[0] == close(
        1.0
    )
    assert local("tool", program("while True: pass")) == (close(0.1), 0.0, Outcome.TOOL_TIMEOUT)


def test_agreement_ends_it_and_only_a_right_answer_is_success(sandbox):
    for number, solved in ((7, True), (8, False)):
        state = say(sandbox, SEVEN, "tool", program(f"print({number})")).state
        step = say(sandbox, state, "reasoner", f"\\boxed{{{number}.0}}")
        assert (step.done, step.solved) == (True, solved)
    state = say(sandbox, SEVEN, "tool", program("print(7)")).state
    step = say(sandbox, state, "reasoner", "\\boxed{8}")
    assert not step.done and len(step.state.turns) == 1 and step.state.said == ()
    state = say(sandbox, SEVEN, "tool", "nothing").state
    assert not say(sandbox, state, "reasoner", "\\boxed{7}").done  # nobody to agree with


def test_wrong_answers_agree_by_algebra(sandbox):
    state = say(sandbox, SEVEN, "tool", program("print('\\\\\\\\frac{\\\\\\\\sqrt{2}}{2}')")).state
    assert say(sandbox, state, "reasoner", "\\boxed{\\frac{1}{\\sqrt{2}}}").done


def test_what_others_said_is_no_reason_to_miss_the_truth(sandbox):
    """A tool's output that cannot be read, or takes for ever to: the reasoner's is compared all the same."""
    for printed in ("\\\\frac{", "10^{10^{10}}"):
        state = say(sandbox, HALF, "tool", program(f"print('{printed}')")).state
        assert state.said[0].answer is not None and not state.said[0].right
        step = say(sandbox, state, "reasoner", "\\boxed{\\dfrac{2}{4}}")
        assert (step.reward.team, step.done) == (1.0, False)


@pytest.mark.parametrize("weight", ["form", "match", "builds", "runs", "tool_match"])
def test_every_weight_matters(sandbox, weight):
    task = Math(**{weight: 0.0})
    texts = {"tool": program("print(7)"), "reasoner": "\\boxed{7}"}
    pay = [
        [say(sandbox, SEVEN, role, text, t).reward.local for role, text in texts.items()]
        for t in (TASK, task)
    ]
    assert pay[0] != pay[1] and sum(pay[0]) - sum(pay[1]) == pytest.approx(getattr(TASK, weight))


def test_the_last_turn_ends_it(sandbox):
    task = Math(workflow=Workflow((("tool", "reasoner"),), turns=2))
    state = SEVEN
    for turn in (1, 2):
        state = say(sandbox, state, "tool", program("print(1)"), task).state
        step = say(sandbox, state, "reasoner", "\\boxed{7}", task)
        state = step.state
        assert (step.done, step.solved) == ((False, False) if turn == 1 else (True, True))


def test_parts_are_paid_as_changes_so_an_episode_pays_where_it_ends(sandbox):
    state, total, team = SEVEN, 0.0, 0.0
    texts = [
        ("tool", program("print(7)")),
        ("reasoner", "\\boxed{8}"),
        ("tool", "none"),
        ("reasoner", "\\boxed{7}"),
    ]
    seen = []
    for role, text in texts:
        step = say(sandbox, state, role, text)
        state, total, team = step.state, total + step.reward.local, team + step.reward.team
        seen.append((round(step.reward.local, 9), step.reward.team))
    # The tool was right, so was the team; the reasoner's word counts more; ...
    assert seen == [(1.0, 1.0), (0.2, -1.0), (-1.0, 0.0), (0.8, 1.0)]
    assert (total, team) == (pytest.approx(1.0), 1.0)


def test_prompts_show_the_turns_before_and_not_the_answer(sandbox):
    first = TASK.prompt(SEVEN, "reasoner")[0]["content"]
    assert "What is 3 + 4?" in first and "Attempt" not in first and "\\boxed{answer}" in first
    state = say(sandbox, SEVEN, "tool", program("print(5)")).state
    assert TASK.prompt(state, "reasoner")[0]["content"] == first  # parallel: only complete turns are shown
    state = say(sandbox, state, "reasoner", "It is " + "x" * 5000 + "\\boxed{6}").state
    later = TASK.prompt(state, "tool")[0]["content"]
    assert "print(5)" in later and "Its answer: 5" in later and "Its answer: 6" in later and len(later) < 3000
    assert "7" not in later


def test_many_who_reason_and_a_judge(sandbox):
    task = Math(workflow=Workflow(("reasoner1", "reasoner2", "tool1", "judge"), turns=2))
    state = SEVEN
    for role, text in (
        ("reasoner1", "\\boxed{7}"),
        ("reasoner2", "\\boxed{8}"),
        ("tool1", program("print(8)")),
    ):
        assert "Attempt" not in task.prompt(state, role)[0]["content"]
        state = say(sandbox, state, role, text, task).state
    shown = task.prompt(state, "judge")[0]["content"]
    assert shown.count("Its answer: 8") == 2 and "Its answer: 7" in shown
    step = say(sandbox, state, "judge", "\\boxed{7}", task)
    assert (step.reward.team, step.done) == (1.0, False)  # from a wrong last reasoner to a right judge


def test_hostile_and_random_texts(sandbox):
    assert check(TASK, sandbox, instances=1, episodes=6) == []


def rows(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_files_of_problems(tmp_path, capsys):
    one, two = {"question": "What is 1 + 1?", "answer": 2}, {"question": "And 2 + 2?", "answers": ["$4$"]}
    files = {
        "train": (rows(tmp_path / "a.jsonl", one, two), rows(tmp_path / "b.jsonl", two)),
        "test": rows(tmp_path / "t.jsonl", {"question": "what is  1+1", "answer": "2"}),
    }
    task = Math(files=files)
    assert [task.instance("train", i).answer for i in range(3)] == ["4"] * 3
    assert task.instance("test", 0).answer == "2"
    said = capsys.readouterr().err
    assert "train: 3 problems, without 1 for being in a later split and 1 for coming twice" in said


def test_rows_of_several_answers(tmp_path):
    row = {"question": "?", "answers": ["$69$,$84$."], "multiple": True, "tolerance": "1e-1,1e-2"}
    task = Math(files={"train": rows(tmp_path / "a.jsonl", row)})
    assert task.instance("train", 0) == Problem("1", "?", "69,84", multiple=True, tolerance=0.1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"question": "?", "answer": "1", "tolerance": "x"}, r":1: tolerance = 'x' is no number"),
        ({"question": "?", "answer": "1", "tolerance": -1}, r":1: tolerance = -1.0 is not a finite"),
        ("{\n", r"a.jsonl:1: no JSON"),
        ({"answer": "2"}, r":1: no field 'question'"),
        ({"question": "?"}, r":1: answer = \[None\] is not one text or number"),
        ({"question": "?", "answers": ["1", "2"]}, r":1: answer = "),
        ({"question": "?", "answer": ""}, r":1: answer = '' is empty"),
        ({"question": "?", "answer": True}, r":1: answer = \[True\] is not one text or number"),
        ('{"question": "?", "answer": NaN}\n', r":1: answer = 'nan': a word for no answer"),
        ('{"question": "?", "answer": 1e999}\n', r":1: answer = 'inf': a word for no answer"),
        ({"question": "?", "answer": "N/A"}, r":1: answer = 'N/A': a word for no answer"),
        ({"question": "?", "answer": "So it is 12.\n#### 12"}, r":1: answer = .*GSM8K's own"),
        ({"question": "?", "answer": "it is " * 9}, r":1: answer = .* a sentence, of more than 8 words"),
        ({"question": "?", "answer": "1", "multiple": "false"}, r":1: multiple = 'false' is neither"),
        ({"question": "?", "answer": "1", "tolerance": [0.1]}, r":1: tolerance = '\[0.1\]' is no number"),
        ({"question": "?", "answer": "1", "tolerance": True}, r":1: tolerance = 'True' is no number"),
        ('{"question": "?", "answer": "1", "tolerance": 1e999}\n', r":1: tolerance = inf is not a finite"),
        ('{"question": "?", "answer": "1", "tolerance": NaN}\n', r":1: tolerance = nan is not a finite"),
        (
            {"question": "?", "answer": "1", "tolerance": 1e300},
            r":1: tolerance = 1e\+300 makes anything right",
        ),
        ({"question": "?", "answer": "1/2", "tolerance": 1}, r":1: tolerance = 1.0 makes anything right"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, says):
    with pytest.raises(ValueError, match=says):
        Math(files={"train": rows(tmp_path / "a.jsonl", line)})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workflow": Workflow(("critic",))}, r"not \['critic'\]"),
        ({"workflow": Workflow(("judge", "reasoner"))}, "a judge or checker is one, and hears the others"),
        ({"files": {"dev": "x"}}, "files of split 'dev'"),
        ({"files": {"train": "nowhere.jsonl"}}, "nowhere.jsonl: no such file"),
        ({"match": -1.0}, "Math.match"),
        ({"prompts": "nowhere"}, "no prompts in 'nowhere'"),
    ],
)
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Math(**wrong)
