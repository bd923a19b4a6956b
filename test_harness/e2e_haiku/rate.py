"""How often the gate accepts: `REQUIRE_REAL_LLAMA=1 python -m e2e_haiku.rate --runs 30`.

Each run is a whole one against one service with a real engine, its clock set forward so that the
runs ask for minutes all over the hour. Prints a table, leaves `haiku/rate.json` among the reports,
and exits 1 where fewer than `RATE_MIN` of the runs were accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from e2e_haiku.gate import Gate, Refused, Target
from harness_kit.report_files import report_file
from harness_kit.service_process import DATA_KEY, METRICS_KEY, ServiceProcess, launched_pool

RATE_MIN = 0.95


def target_of(service: ServiceProcess) -> Target:
    """The gate's target for a service of the harness."""
    url = f"http://127.0.0.1:{service.port}"
    return Target(url, DATA_KEY, f"{url}/metrics", METRICS_KEY)


def _clock(minutes_ahead: int) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + timedelta(minutes=minutes_ahead)


def main(argv: Sequence[str]) -> int:
    """Run the gate `--runs` times; returns the exit status."""
    parser = argparse.ArgumentParser(prog="e2e_haiku.rate")
    parser.add_argument("--runs", type=int, default=30)
    runs = parser.parse_args(argv).runs
    rows = []
    with (
        tempfile.TemporaryDirectory() as directory,
        ServiceProcess(Path(directory), launched_pool(1)) as service,
    ):
        for number in range(runs):
            gate = Gate(target_of(service), os.environ, now=_clock(60 * number // runs))
            try:
                accepted = gate.run()
            except Refused as refused:
                row = {"accepted": False, "said": str(refused)}
            else:
                row = {
                    "accepted": True,
                    "said": accepted.text,
                    "minute": accepted.minute,
                    "tries": accepted.tries,
                    "tokens": accepted.tokens_out,
                    "seconds": round(accepted.elapsed_s, 2),
                }
            rows.append(row)
            print(
                f"{number + 1:3}  {'yes' if row['accepted'] else 'NO '}  {row['said']!r}",
                flush=True,
            )
    accepted_runs = sum(bool(row["accepted"]) for row in rows)
    print(f"accepted: {accepted_runs} of {runs}")
    report = {"runs": runs, "accepted": accepted_runs, "rows": rows}
    report_file("haiku/rate.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if accepted_runs >= RATE_MIN * runs else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
