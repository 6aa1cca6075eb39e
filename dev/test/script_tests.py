"""How the tests of the Python scripts are run: `NAME...` on the command line chooses those that begin so."""

import contextlib
import io
import sys
import unittest


def main(*cases):
    """Runs the tests of some TestCases, prints what failed and `N passed, N failed`. Returns the exit status."""
    names = sys.argv[1:]
    suite = unittest.TestSuite(
        test for case in cases for test in unittest.defaultTestLoader.loadTestsFromTestCase(case)
        if not names or any(test._testMethodName.startswith(f"test_{name}") for name in names))
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        outcome = unittest.TextTestRunner(stream=text, verbosity=1).run(suite)
    failed = len(outcome.failures) + len(outcome.errors)
    if failed:
        print(text.getvalue())
    print(f"{outcome.testsRun - failed} passed, {failed} failed")
    return failed > 0
