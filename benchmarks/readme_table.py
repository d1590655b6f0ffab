"""The README's table, from a committed result of benchmarks.layers: `python -m benchmarks.readme_table`."""

import json
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "layers-amd-epyc.json"


def milliseconds(row: dict, dense: dict) -> str:
    """A cell: the time, and what it is against the dense layer."""
    ratio = dense["seconds"] / row["seconds"]
    against = f"{ratio:.3g}x" if ratio >= 1 else f"1/{1 / ratio:.3g}x"
    return f"{1e3 * row['seconds']:.3g} ms ({against})"


def table(result: dict) -> str:
    """Markdown: one line for each layer and number of threads."""
    environment = result["environment"]
    versions = environment["versions"]
    lines = [
        f"{environment['device']}, {environment['isa']}, torch {versions['torch']}, commit "
        f"`{environment['commit'][:7]}`: `{environment['command']}`. Medians of interleaved rounds; in "
        "brackets the speed relative to the dense layer.",
        "",
        "| layer, density, batch, float32 | threads | pass | dense | DCTpS | `torch.sparse`, S x alone "
        "| held: dense, DCTpS |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple, dict] = {}
    for row in result["rows"]:
        groups.setdefault((row["title"], row["threads"], row["pass"]), {})[row["peer"]] = row
    for (title, threads, pass_), peers in groups.items():
        if title.startswith(("Linear 512 ", "Linear 2048 ")):
            continue  # the README shows every other size
        dense = peers.get("nn.Linear") or peers["nn.Conv2d"]
        ours, sparse = peers["DCTpS"], peers.get("torch.sparse")
        lines.append(
            f"| {title} | {threads} | {pass_} | {1e3 * dense['seconds']:.3g} ms "
            f"| {milliseconds(ours, dense)} "
            f"| {milliseconds(sparse, dense) if sparse else ''} "
            f"| {dense['held_bytes'] / 1024:.0f} KiB, {ours['held_bytes'] / 1024:.0f} KiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(RESULT.read_text(encoding="utf-8"))))
