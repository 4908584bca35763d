"""Damaged files against their readers: `python -m benchmarks.fuzz_files` (its docstring is in __main__.py).

Read damage (what is done to a file), inputs (the undisturbed files), reading and *_readers (what the jobs make of the
files), kinds (who reads which), judging (what counts as right), worker (a process with a deadline), __main__ (the table).
"""
