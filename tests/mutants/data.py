"""Rows of problem files, and how downloads become them."""

PREPARE = "test_prepare_answers.py test_prepare_programs.py test_prepare_files.py"

FAULTS = {
    ("tasks/data.py", "test_data.py test_math.py"): [
        ("SPLITS[SPLITS.index(split) + 1 :]", "SPLITS[SPLITS.index(split) + 2 :]", "what validates is trained on"),
        ("SPLITS[SPLITS.index(split) + 1 :]", "SPLITS[3:]", "what is tested on is trained on"),
        ("distinct = {key(row): row for row in reversed(rows)}", "distinct = dict(enumerate(reversed(rows)))", "rows come twice"),
        ("for name, row in reversed(distinct.items())", "for name, row in distinct.items()", "rows are in another order"),
        ('if split != "train":', 'if split == "train":', "the splits' orders change places"),
        ('seed_of("problems", seed, round_)', 'seed_of("problems", seed)', "every round in one order"),
        ('seed_of("problems", seed, round_)', 'seed_of("problems", round_)', "the seed is not heard"),
        ("except (OSError, EOFError, zlib.error, UnicodeDecodeError)", "except (OSError, UnicodeDecodeError)", "damaged files are tracebacks"),
        ("enumerate(lines, 1)", "enumerate(lines)", "errors name the line before"),
    ],
    ("tools/prepare.py", PREPARE): [
        ("if name in seen:", "if False:", "rows come twice"),
        ('if row.get("answer_type") == "Need_human_evaluate":', "if False:", "answers that people must judge"),
        ("json.dumps(row | {\"id\": \"\"})", "json.dumps(row)", "the same problem under two names"),
        ("partial.replace(path)", "pass", "nothing is written"),
        (".removeprefix(DAPO_BEFORE)", "", "DAPO's own prompt is part of the problem"),
    ],
    ("tools/downloads.py", PREPARE): [
        ("if start.startswith((b\"<!doctype\", b\"<html\", b\"<?xml\")):", "if False:", "web pages are data"),
        ("if level:\n        yield level", "if False:\n        yield level", "the last level is lost"),
        ("csv.field_size_limit(1 << 30)", "csv.field_size_limit(1 << 16)", "long fields are errors"),
        ("return iter(whole if isinstance(whole, list) else whole.values())", "return iter(whole)", "an object's rows are its keys"),
    ],
    ("tasks/data.py", "test_data.py"): [
        ("return sign.lower() if len(sign) > 1", "return sign if len(sign) > 1", "a capital letter makes another problem"),
        ("_SIGNS.findall(_MARKS.sub", "re.findall(r\"\\w+\", _MARKS.sub", "signs do not count"),
        ("if not isinstance(row[name], kind) or", "if", "fields of any type"),
    ],
    ("tools/sources.py", PREPARE): [
        ('language in (PYTHON3, "PYTHON3")', "True", "a solution in any language"),
        ('if row.get("input_file"):', "if False:", "problems that read files"),
        ("if len(given) != len(expected):", "if False:", "as many results as there happen to be"),
        ('_private(row.get("private_test_cases"))', "[]", "private tests are left out"),
        ('raise Unusable("private tests are not plain data")', "return super().find_class(module, name)", "a download runs code"),
        ('return f"in ({expected[0]!r}, {expected!r})"', 'return f"== {expected!r}"', "a list of one must be a list"),
    ],
    ("tools/passages.py", "test_prepare_passages.py"): [
        ("for title in titles for one in documents", "for one in documents for title in titles", "supporting passages are in another order"),
        ("dict.fromkeys((*hops, *marked))", "dict.fromkeys(marked)", "hops are in another order"),
        ('if row.get("answerable") is False:', "if False:", "questions that cannot be answered"),
    ],
    ("tools/truths.py", "test_prepare_answers.py test_math.py"): [
        ("if len(found) > 1:", "if False:", "several answers are one"),
    ],
}  # fmt: skip
