"""Learning curves of the voice encoder and the face decoder, with and without each added loss.

    python benchmarks/curves.py DATA [-o OUT.png] [--seeds N] [--json] [--quick]

DATA is what `s2f prep demo` makes. Every run is one of the project's own `train`, of the compact
networks, with the bundled model's face encoder; that has no identity logits, so `encoder/distill`
cannot be among the losses. Runs that are compared have the same seed, people, steps and batches;
each seed keeps out other people. What is measured on these does not depend on the weights of the
losses. The voice encoder's last layers are not solved in the end (`finish`), which would hide what
the losses did. Prints a table, draws the curves, and fails where a run did not learn: where it
ends no better than it started.
"""

import argparse
import dataclasses
import io
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import curves_runs
import torch
from curves_runs import DECODER, PARTS, VOICE, Curve, Figures, Job, Part, Variant
from PIL import Image

QUICK = {"voice": {"steps": 30, "every": 15}, "decoder": {"steps": 12, "every": 6}}
WORKERS = min(4, os.cpu_count() or 1)
CLEAR = 2.0  # standard errors of a difference that seeds do not explain
Results = dict[tuple[str, str], list[Curve]]


@dataclasses.dataclass(frozen=True)
class Row:
    """How the runs of a variant ended, on average over the seeds.

    Attributes:
        ends: by measure.
        gains: over the variant that it is compared with, more being better.
    """

    variant: Variant
    ends: Figures
    gains: Figures


def one_thread() -> None:
    """Have a process compute on one core: as many runs as cores are quicker than one on all."""
    torch.set_num_threads(1)


def run_all(
    folder: Path, data: Path, *, n_seeds: int, quick: bool
) -> tuple[Results, Figures, Figures]:
    """Train everything.

    Returns:
        The curves of each variant, one a seed; the weights of the voice's terms; what is known of
        the data.
    """
    seeds = range(1 if quick else n_seeds)
    configs = {
        name: dataclasses.replace(part.config, **(QUICK[name] if quick else {}))
        for name, part in PARTS.items()
    }
    curves_runs.divide(data, folder, len(seeds))
    with multiprocessing.get_context("spawn").Pool(WORKERS, one_thread) as pool:
        start = pool.apply_async(curves_runs.write_start, (data, folder))
        everything = Variant("all", "mse", tuple(curves_runs.TERMS))
        weights, known = pool.apply(
            curves_runs.calibrate, (Job("voice", everything, 0, folder, {}, configs["voice"]),)
        )
        start.get()
        jobs = [
            Job(name, variant, seed, folder, weights, dataclasses.replace(config, seed=seed))
            for name, config in reversed(configs.items())  # long ones first
            for seed in seeds
            for variant in PARTS[name].variants
        ]
        results: Results = {(job.part, job.variant.name): [] for job in jobs}
        started = time.perf_counter()
        for k, (job, curve) in enumerate(pool.imap(curves_runs.curve, jobs), start=1):
            results[job.part, job.variant.name].append(curve)
            seconds = time.perf_counter() - started
            end = " ".join(f"{name} {value:.4g}" for name, value in curve[-1].items())
            print(
                f"{k}/{len(jobs)} {seconds:.0f} s: {job.part}, {job.variant.name}, seed "
                f"{job.seed}: {end}",
                file=sys.stderr,
            )
    return results, weights, known


def sign(part: Part, measure: str) -> int:
    """Give 1 where more is better, or -1."""
    return 1 if part.measures[measure] else -1


def differences(part: Part, results: Results, variant: Variant, measure: str) -> list[float]:
    """How much better a variant ends than the one it is compared with, seed by seed."""
    pairs = zip(
        *(results[part.name, name] for name in (variant.name, variant.against)), strict=True
    )
    return [sign(part, measure) * (mine[-1][measure] - other[-1][measure]) for mine, other in pairs]


def summarise(part: Part, results: Results) -> tuple[list[Row], Figures]:
    """Average over the seeds.

    Returns:
        The rows, and by measure the standard error of their gains: from how gains differ between
        seeds, the variants' variances averaged. Not a number where there is one seed.
    """
    rows, noise = [], {}
    compared = [variant for variant in part.variants if variant.name != variant.against]
    for variant in part.variants:
        ends = [curve[-1] for curve in results[part.name, variant.name]]
        rows.append(
            Row(
                variant,
                {m: statistics.fmean(end[m] for end in ends) for m in part.measures},
                {
                    m: statistics.fmean(differences(part, results, variant, m))
                    for m in part.measures
                },
            )
        )
    for measure in part.measures:
        found = [differences(part, results, variant, measure) for variant in compared]
        n = len(found[0])
        variances = [statistics.variance(values) for values in found if n > 1]
        noise[measure] = math.sqrt(statistics.fmean(variances) / n) if variances else math.nan
    return rows, noise


def failures(results: Results) -> list[str]:
    """Name the runs that did not learn, and what is no better than at the start."""
    failed = []
    for (name, variant), curves in results.items():
        part = PARTS[name]
        for seed, curve in enumerate(curves):
            for measure in part.learned:
                gain = (curve[-1][measure] - curve[0][measure]) * sign(part, measure)
                if not gain > 0:
                    failed.append(f"{name}, {variant}, seed {seed}: {measure}")
    return failed


def print_table(part: Part, rows: list[Row], noise: Figures, start: Figures) -> None:
    """Print how the runs ended; a star marks a gain or loss that the seeds do not explain."""
    print(f"\n{part.name:24}{'compared with':22}" + "".join(f"{m:>30}" for m in part.measures))
    print(f"{'at the start':46}" + "".join(f"{start[m]:14.4g}{'':16}" for m in part.measures))
    for row in rows:
        line = f"{row.variant.name:24}"
        alone = row.variant.name == row.variant.against
        line += f"{'' if alone else row.variant.against:22}"
        for measure in part.measures:
            line += f"{row.ends[measure]:14.4g}"
            gain = row.gains[measure]
            star = "*" if abs(gain) > CLEAR * noise[measure] else " "
            line += f"{'':16}" if alone else f"{gain:+14.3g} {star}"
        print(line)
    told = "".join(f"{noise[m]:28.2g}  " for m in part.measures)
    print(f"{'standard error of a gain':46}{told}")


def draw(results: Results, known: Figures, path: Path) -> None:
    """Draw the curves, averaged over the seeds; dotted what is known without having listened."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 3, figsize=(13, 11), layout="constrained")
    added = [v.name for v in VOICE.variants if v.against == "mse"]
    left_out = [v.name for v in VOICE.variants if v.against == "all"] + ["all"]
    decoders = [v.name for v in DECODER.variants]
    chance = {f"R@{k}": k / known["people kept out"] for k in (1, 5)}
    chance["angle, degrees"] = known["angle of the mean training face"]
    panels = ((VOICE, added), (VOICE, left_out), (DECODER, decoders))
    for row, (part, names) in zip(axes, panels, strict=True):
        for axis, measure in zip(row, part.measures, strict=True):
            for k, name in enumerate(names):
                reference = name in ("mse", "all", decoders[0])
                curves = results[part.name, name]
                steps = [point["step"] for point in curves[0]]
                means = [
                    statistics.fmean(point[measure] for point in points)
                    for points in zip(*curves, strict=True)
                ]
                colour = {"mse": "black", "all": "0.55"}.get(name, f"C{k}")
                axis.plot(
                    *(steps, means),
                    label=name,
                    color="black" if name == decoders[0] else colour,
                    linewidth=2.6 if reference else 1.5,
                    marker="o",
                    markersize=3,
                )
            if measure in chance:
                axis.axhline(chance[measure], color="black", linewidth=1, linestyle=":")
            axis.set(title=f"{part.name}: {measure}", xlabel="step")
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=75)
    Image.open(picture).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size


def main() -> None:
    """Print the table or the figures as JSON; draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="figure to write")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: does it run")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results, weights, known = run_all(
            Path(folder), options.data, n_seeds=options.seeds, quick=options.quick
        )
    known["seconds"] = round(time.perf_counter() - started)
    told: dict[str, Any] = {"data": known, "weights": weights}
    if not options.json:
        print(json.dumps(told, indent=1))
    for name, part in PARTS.items():
        rows, noise = summarise(part, results)
        curves = {v.name: results[name, v.name] for v in part.variants}
        told[name] = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "standard error of a gain": noise,
            "curves": curves,
        }
        if not options.json:
            print_table(part, rows, noise, results[name, part.variants[0].name][0][0])
    if options.json:
        print(json.dumps(told, indent=1))
    if options.output:
        draw(results, known, options.output)
    failed = failures(results)
    if failed:
        raise SystemExit(f"did not learn: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
