"""Programs kept apart: files, calls, limits, and what is said of how they ended."""

FAULTS = {
    ("sandbox/kernel.py", "test_sandbox_filter.py test_sandbox_harm.py test_sandbox_thieves.py test_sandbox_pool.py"): [
        ("_check(_libc.syscall(_RESTRICT[2], ruleset, 0))", "pass", "files are not given up"),
        ("rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1", "rights = _READ_FOLDER", "only folders are given up"),
    ],
    ("sandbox/system_calls.py", "test_sandbox_filter.py test_sandbox_harm.py test_sandbox_thieves.py test_sandbox_pool.py"): [
        ("(2, None, _unless_any_bit(1, _WRITING, errno.EACCES))", "(2, None, [_instruction(_RETURN, _ALLOW)])", "old open may write"),
        ("(257, 56, _unless_any_bit(2, _WRITING, errno.EACCES))", "(257, 56, [_instruction(_RETURN, _ALLOW)])", "open may write"),
        ("_load(_low(0)), _jump(_ANY_BIT, _THREAD, 0, 2)", "_load(_low(0)), _jump(_ANY_BIT, _THREAD, 0, 0)", "processes are started"),
        ('return b"".join([*code, _refuse(errno.EPERM)])', 'return b"".join([*code, _instruction(_RETURN, _ALLOW)])', "what is not known is allowed"),
        ('"kill": (62, 129, _if_one_of(0, (pid,), errno.EPERM))', '"kill": (62, 129, [_instruction(_RETURN, _ALLOW)])', "others are signalled"),
    ],
    ("sandbox/worker.py", "test_sandbox_programs.py test_sandbox_harm.py test_sandbox_pool.py test_sandbox_thieves.py"): [
        ("(resource.RLIMIT_AS, limits[\"memory\"]),", "", "memory has no limit"),
        ("resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))", "pass", "CPU time has no limit"),
        ("            if left <= 0:\n", "            if left <= -60:\n", "wall time has no limit"),
        ("(resource.RLIMIT_FSIZE, limits[\"output\"] + 1),", "", "output has no limit"),
        ("why = why or \"timeout\"\n", "pass\n", "CPU time's end is an error"),
        ("        kernel.deny_calls(self._filter)" , "        pass", "calls are not given up"),
        ("kernel.end_with_parent()", "pass", "a program outlives its worker"),
        ("os.closerange(len(opened), _RULES)", "pass", "a program has its worker's files"),
        ("if any(child.threads() > self._limits[\"threads\"] for child in children):", "if False:", "threads have no limit"),
        ("harness = (program.check, (*handed[:_GIVEN], told, ask))", "harness = (program.run, (*handed[:_GIVEN], told, ask))", "harnesses are run as programs"),
    ],
    ("sandbox/files.py", "test_sandbox_programs.py test_sandbox_harm.py test_sandbox_pool.py"): [
        ('end if note.startswith(program.READY) else "crash"', "end", "a sandbox that failed is the program's fault"),
        ("note.endswith(program.BUILT)", "True", "every text is Python"),
        ('why or ("error" if status else "ok")', 'why or "ok"', "every end is well"),
        ("if max(len(out), size) > most:", "if False:", "too much output is well"),
    ],
    ("sandbox/program.py", "test_sandbox_programs.py test_code_programs.py test_code_rewards.py test_code_rows.py"): [
        ("os._exit(GONE)", "os._exit(0)", "a program that ends its harness passes"),
        ('return {"error": f"{type(error).__name__}: {error}"[:500]}', 'return {"result": None}', "exceptions of calls are None"),
    ],
    ("sandbox/pool.py", "test_sandbox_pool.py test_sandbox_harm.py"): [
        ('return ProgramResult("crash", stderr=str(lost))', 'return ProgramResult("error", stderr=str(lost))', "a lost worker is the program's fault"),
        ("            self._drop(worker)\n            worker = None", "            self._drop(worker)", "a lost worker is asked again"),
        ("for level in reversed(levels):", "for level in levels:", "the weakest level is taken"),
        ("if LEVELS.index(level) >= LEVELS.index(config.level)]", "]", "a weaker level than asked for is taken"),
    ],
    ("sandbox/probe.py", "test_sandbox_pool.py test_sandbox_harm.py"): [
        ('return f"a program could {could}" if could and settings.level != "limits" else None', "return None", "what gets through goes unseen"),
    ],
    ("sandbox/program.py", "test_sandbox_programs.py test_sandbox_harm.py"): [
        ("return code & 255 if abs(code) < 1 << 63 else 255", "return 0", "exit codes are lost"),
        ("        _print(error)\n        return module.__dict__, 1", "        _print(error)\n        return module.__dict__, None", "exceptions end well"),
        ("        code = _flush() or code\n", "", "what is in the buffer is lost at the end"),
        ("threading._shutdown()", "pass;", "threads are not waited for"),
        ("atexit._run_exitfuncs()", "pass", "what is registered for the end is not done"),
        ("return __future__.annotations.compiler_flag if asked is", "return 0 if asked is", "annotations are not put off"),
    ],
    ("sandbox/plain_data.py", "test_sandbox_programs.py test_sandbox_harm.py"): [
        ("for kind in (tuple, set, frozenset, deque):", "for kind in (set, frozenset, deque):", "tuples are no plain data"),
    ],
}  # fmt: skip
