"""Result files: what they hold, how they are written as a run goes on, how they are read.

A file is JSON with `environment` (device, versions, commit, command, date), `scope` and `arguments` (what was
asked for), `notes` and `rows`, one row a line. While a run goes on, the finished jobs are in FILE.partial, a
line each, from which an interrupted run goes on. pytest-benchmark's JSON files of the suite are read as well.
"""

import json
import re
import statistics
from pathlib import Path

from dctps_ext.experiments.record import environment, write_atomically

IDENTITY = ("section", "kind", "m", "n", "density", "batch", "kernel", "stride", "dilation", "groups", "size")
IDENTITY += ("model", "dtype", "device", "threads", "pass")
# What must agree for a run to be continued; the rest of the environment may differ.
_SAME_RUN = ("device", "gpu", "isa", "versions", "commit")


class Store:
    """The results of a run, kept as they come.

    Args:
        path: of the file that `finish` writes; `path`.partial meanwhile.
        scope: the scope's name. arguments: what else decides which jobs there are.

    Raises:
        ValueError: the partial file is of another commit, machine, or set of versions.
    """

    def __init__(self, path, scope, arguments):
        self.path, self.scope, self.arguments = Path(path), scope, arguments
        self.environment = environment(("ducc0", "pyfftw", "matplotlib"))
        self.jobs, self._failed = {}, {}
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        if self._partial.exists():
            self._resume()
        else:
            self._append({"environment": self.environment})

    def _resume(self):
        text = self._partial.read_text(encoding="utf-8")
        first, *lines = text[: text.rfind("\n") + 1].splitlines() or ["{}"]  # a killed run ends anywhere
        before = json.loads(first).get("environment", {})
        for name in _SAME_RUN:
            if before.get(name) != self.environment[name]:
                raise ValueError(
                    f"{self._partial}: expected a run with {name} {self.environment[name]}, got one with "
                    f"{before.get(name)}: remove it, or choose another --out"
                )
        self.environment = before
        for line in lines:
            job = json.loads(line)
            self.jobs[job["job"]] = job
        write_atomically(self._partial, lambda file: file.write(text[: text.rfind("\n") + 1].encode()))

    def _append(self, entry):
        with open(self._partial, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def rows(self, name, measure):
        """The rows of job `name`: those of before, or else what `measure()` gives, (rows, notes).

        An error of `measure` is raised again each time that the job is asked for.
        """
        if name in self._failed:
            raise self._failed[name]
        if name not in self.jobs:
            try:
                rows, notes = measure()
            except Exception as error:
                self._failed[name] = error
                raise
            self.jobs[name] = {"job": name, "rows": rows, "notes": notes}
            self._append(self.jobs[name])
        return self.jobs[name]["rows"]

    def finish(self, notes=()):
        """Writes the file, whole or not at all, and drops the partial one."""
        jobs = self.jobs.values()
        notes = [*notes, *dict.fromkeys(note for job in jobs for note in job["notes"])]
        head = {
            "environment": self.environment,
            "scope": self.scope,
            "arguments": self.arguments,
            "notes": notes,
        }
        write(self.path, head, [row for job in jobs for row in job["rows"]])
        self._partial.unlink()


def write(path, head, rows):
    """Writes a result file: the head indented, then a row a line."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    text = f'{json.dumps(head, indent=1, allow_nan=False)[:-2]},\n "rows": [\n{lines}\n]\n}}\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def read(path):
    """A result file as a dict with `environment`, `scope`, `notes` and `rows`.

    Raises:
        ValueError: the file is neither the suite's nor pytest-benchmark's of the suite.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if "benchmarks" in content:
        rows = [dict(entry["extra_info"]) for entry in content["benchmarks"]]
        content = {"rows": rows, "scope": "", "notes": [], **content.get("machine_info", {}).get("suite", {})}
    if not isinstance(content, dict) or not {"environment", "rows"} <= content.keys():
        raise ValueError(f"{path}: expected a result file of the suite or pytest-benchmark's JSON of it")
    return content


def identity(row):
    """What rows that are compared with each other have in common: a tuple."""
    return tuple(row[name] for name in IDENTITY)


def short_name(row):
    """What a row is about, where section, kind, pass, dtype and threads are told elsewhere."""
    p = f" p={100 * row['density']:.3g}%" if row["density"] else ""
    if row["model"]:
        return f"{row['model']}{p} B={row['batch']}"
    if row["kind"] == "conv":
        more = "".join(f" {name} {row[name]}" for name in ("stride", "dilation", "groups") if row[name] > 1)
        k = row["kernel"]
        return f"{k}x{k} {row['n']} -> {row['m']}{more}{p} B={row['batch']} {row['size']}x{row['size']}"
    return f"q={row['q']}{p} B={row['batch']}"


def blocks(rows):
    """{identity: {peer: row}} of the timed rows, in the order of the rows."""
    grouped = {}
    for row in rows:
        if "seconds" in row:
            grouped.setdefault(identity(row), {})[row["peer"]] = row
    return grouped


def quartiles(row):
    """The lower and upper quartile of a row's rounds."""
    samples = row["samples"]
    if len(samples) == 1:
        return samples[0], samples[0]
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, upper


def device_of(record):
    """The device as headings name it: the GPU where there is one in the record, else the CPU."""
    return record.get("gpu") or record["device"]


def slug(record):
    """The device's name as a part of file names."""
    return re.sub("[^a-z0-9]+", "-", device_of(record).lower()).strip("-")


def origin(result):
    """One line that says where the numbers come from."""
    record = result["environment"]
    commit = record["commit"] or "unknown"
    return (
        f"{device_of(record)}, {record['isa']}, torch {record['versions']['torch']}, commit {commit[:7]}"
        f"{'+changes' if commit.endswith('+changes') else ''}, {record['date'][:10]}"
    )


def busy_warning(record, threads):
    """What to say of an `environment()` too busy for a benchmark with so many threads, "" where it is not."""
    if record["load"] is None or record["load"] + threads <= record["cores"] + 0.5:
        return ""
    # Libraries whose threads spin at a barrier lose whole time slices then, and ratios mean nothing.
    return (
        f"NOT TO BE TRUSTED: the machine was busy, load {record['load']:.1f} on {record['cores']} cores "
        f"before {threads} thread{'s' if threads > 1 else ''} of this benchmark."
    )
