#!/bin/sh
# Tests of scripts/compare.py, results.py, checkpoint.py, measure.py and report.py, where there is Python 3.11.
# usage: [T=NAME] report_test.sh [NAME]
cd "$(dirname "$0")/../.." || exit 1
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "note: there is no Python 3.11, so the tests of the comparison's scripts are left out"
    echo "0 passed, 0 failed"
    exit 0
fi
PYTHONDONTWRITEBYTECODE=1 exec python3 dev/test/test_scripts_report.py "$@"
