"""``python -m osscl_lite data | train | score | export | record | grid | reproduce``, each with an example."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from osscl_lite.data import MACHINES, load_clips
from osscl_lite.detector import Detector
from osscl_lite.errors import BadClips, BadInput
from osscl_lite.files import write_whole
from osscl_lite.grid import Job, by_name, run_grid, score_table, state
from osscl_lite.parallel import first_process, first_to_speak, team_size
from osscl_lite.recipe import ROWS, SIZES, Recipe, recipe, replace
from osscl_lite.record import RESULTS, record, run_name, summary
from osscl_lite.reproduce import reproduce, with_settings
from osscl_lite.tables import TABLES
from osscl_lite.training import DETECTOR, LOG, fit

TYPES = sorted({name.partition("/")[0] for name in MACHINES})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 some files could not be used, 2 nothing done)."""
    options = parser().parse_args(arguments)
    status = 2
    try:
        if team_size() > 1 and options.run is not _train:
            raise BadInput("torchrun starts several processes, which only train can use; start this without torchrun")
        return options.run(options)
    except BadClips as error:
        advice = f"{len(error.problems)} clips cannot be used; mend or remove them, then run the same again"
        lines = [*error.problems.values(), advice]
    except (BadInput, OSError) as error:
        lines = [str(error)]
    except KeyboardInterrupt:
        lines, status = ["stopped; the same command again goes on from here"], 130
    if first_to_speak():
        if team_size() > 1:
            lines.insert(0, "")  # the line may still show the progress of another process
        print(*lines, sep="\n", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        "python -m osscl_lite", description="Anomalous sound detection in one stage (OS-SCL)."
    )
    commands = top.add_subparsers(metavar="command", required=True)

    data = commands.add_parser("data", help="get the real recordings, or write the generated hall")
    verbs = data.add_subparsers(metavar="what", required=True)
    get = _command(
        verbs, "download", "fetch the DCASE 2020 Task 2 archives: resumed, checked, unpacked",
        "python -m osscl_lite data download --types ToyCar,fan --out dcase2020",
    )  # fmt: skip
    get.add_argument("--types", required=True, help=f"'all', or some of {','.join(TYPES)}")
    get.add_argument("--out", type=Path, required=True, help="folder for the tree")
    get.set_defaults(run=_download)
    hall = _command(
        verbs, "hall", "write the generated machine hall as a tree of 16-bit WAV files",
        "python -m osscl_lite data hall --size book --out hall",
    )  # fmt: skip
    hall.add_argument("--size", choices=SIZES, default="book")
    hall.add_argument("--seed", type=int, default=0, help="draws other clips of the same machines")
    hall.add_argument("--out", type=Path, required=True, help="folder for the tree")
    hall.set_defaults(run=_hall)

    train = _command(
        commands, "train", "train a detector; the same command again goes on after a stop",
        "python -m osscl_lite train --recipe logmel-osscl --data hall --size tiny --out run",
    )  # fmt: skip
    _training_options(train)
    train.set_defaults(run=_train)

    score = _command(
        commands, "score", "score clips with a trained detector, as CSV",
        "python -m osscl_lite score --model run/detector.safetensors --out scores.csv dcase2020/dev_data/fan/test",
    )  # fmt: skip
    score.add_argument("clips", nargs="+", type=Path, help="a challenge tree, a folder, WAV files, or one table (.csv)")
    score.add_argument("--model", type=Path, required=True, help="detector.safetensors of a training, or an .onnx file")
    score.add_argument("--machine", help="the machine of files whose path does not tell, such as fan/id_00")
    score.add_argument("--out", type=Path, help="CSV file to write; standard output without it")
    score.add_argument("--device", default="cpu")
    _workers_option(score)
    score.set_defaults(run=_score)

    exported = _command(
        commands, "export", "write a trained detector as one ONNX file, sound in and score out",
        "python -m osscl_lite export --model run/detector.safetensors --out detector.onnx",
    )  # fmt: skip
    exported.add_argument("--model", type=Path, required=True, help="detector.safetensors of a training")
    exported.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    exported.set_defaults(run=_export)

    measured = _command(
        commands, "record", "train, score in every way of chapter 6, and record the run as JSON with its detector",
        "python -m osscl_lite record --recipe logmel-osscl --data hall --size book --seed 0 --out run --to results",
    )  # fmt: skip
    _training_options(measured)
    measured.add_argument("--to", type=Path, required=True, help="folder for the record")
    measured.set_defaults(run=_record)

    many = _command(
        commands, "grid", "record a grid of runs, recipes x seeds; what is recorded already is not run again",
        "python -m osscl_lite grid --recipes logmel-osscl,tfstgram-osscl --seeds 3 --data hall --size book"
        " --out runs --to results --workers 2",
    )  # fmt: skip
    many.add_argument("--recipes", required=True, help=f"some of {','.join(ROWS)}")
    many.add_argument("--seeds", type=int, default=1, metavar="N", help="0 to N - 1, of training and generated clips")
    _source_options(many, "NAME=VALUE[,VALUE]", "change a value of the recipes; several values give a run each")
    many.add_argument("--out", type=Path, required=True, help="folder for a folder of each run")
    many.add_argument("--to", type=Path, required=True, help="folder for the records")
    _workers_option(many)
    many.add_argument("--list", action="store_true", help="print each run and how far it is; run nothing")
    many.set_defaults(run=_grid)

    again = _command(
        commands, "reproduce", "run what tables of the paper need, record it, print each beside the paper's",
        "python -m osscl_lite reproduce 2 4 --data hall --size tiny --seeds 1 --out runs --to results",
    )  # fmt: skip
    again.add_argument("tables", nargs="+", type=int, choices=TABLES, metavar="TABLE", help="2 3 4 5 6")
    again.add_argument("--seeds", type=int, default=1, metavar="N", help="0 to N - 1, of training and generated clips")
    _source_options(again, "[SYSTEM:]NAME=VALUE", "change a value of every system that has it, or of SYSTEM... alone")
    again.add_argument("--out", type=Path, default=Path("runs"), help="folder for a folder of each run")
    again.add_argument("--to", type=Path, default=RESULTS, help="folder for the records; the package's without it")
    _workers_option(again)
    again.add_argument("--list", action="store_true", help="print each run, how far it is, how long one takes")
    again.set_defaults(run=_reproduce, seed=0)
    return top


def _command(verbs: argparse._SubParsersAction, name: str, about: str, example: str) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _training_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", choices=ROWS, required=True)
    command.add_argument("--seed", type=int, default=None, help="of the training, and of the generated clips")
    _source_options(command, "NAME=VALUE", "change a value of the recipe")
    command.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and detector")


def _source_options(command: argparse.ArgumentParser, change: str, about: str) -> None:
    command.add_argument("--data", choices=("hall", "dcase2020", "features"), required=True)
    command.add_argument("--root", type=Path, help="folder of dcase2020 or features")
    command.add_argument("--size", choices=SIZES, default="paper", help="of the recipe and of the generated hall")
    command.add_argument("--set", action="append", default=[], metavar=change, help=about)
    command.add_argument("--device", default="auto")


def _workers_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="how many at a time; above 1 as tasks on a Ray cluster, at RAY_ADDRESS or else on this machine alone",
    )  # fmt: skip


def _chosen_recipe(options: argparse.Namespace) -> Recipe:
    chosen, known = with_settings(recipe(options.recipe, options.size), options.set)
    for change in options.set:
        if change not in known:
            names = ", ".join(field.name for field in fields(Recipe))
            raise BadInput(f"--set {change}: write NAME=VALUE with one of {names}")
    return chosen if options.seed is None else replace(chosen, seed=options.seed)


def _source(options: argparse.Namespace) -> dict[str, Any]:
    return dict(source=options.data, size=options.size, root=options.root, seed=options.seed or 0)


def _data_name(options: argparse.Namespace) -> str:
    if options.data != "hall" and options.root is None:
        raise BadInput(f"--data {options.data}: say in which folder with --root")
    return f"hall-{options.size}" if options.data == "hall" else options.root.resolve().name


def _download(options: argparse.Namespace) -> int:
    from osscl_lite.data.download import download

    download(TYPES if options.types == "all" else options.types.split(","), options.out)
    return 0


def _hall(options: argparse.Namespace) -> int:
    from osscl_lite.data.machines import write_hall

    write_hall(options.size, options.out, options.seed)
    return 0


def _train(options: argparse.Namespace) -> int:
    model = fit(_chosen_recipe(options), load_clips(**_source(options)), device=options.device, out=options.out)
    if not first_process():
        return 0
    best = model.log[model.log["chosen"]].iloc[-1]
    print(
        f"epoch {best['epoch']:.0f} of {len(model.log)} chosen: held-out loss {best['holdout_loss']:.3f}, "
        f"own machine named {best['holdout_accuracy']:.0%}"
    )
    print(f"wrote {options.out / DETECTOR} and {options.out / LOG}")
    return 0


def _record(options: argparse.Namespace) -> int:
    chosen, clips, data = _chosen_recipe(options), load_clips(**_source(options)), _data_name(options)
    result = record(chosen, clips, data, options.out, options.to, options.device)
    print(summary([result]).xs("value", level=1).round(2).to_string())
    print(f"wrote {options.to / run_name(data, chosen)}.json and .safetensors")
    return 0


def _export(options: argparse.Namespace) -> int:
    from osscl_lite.export import export

    export(Detector.load(options.model), options.out)
    print(f"wrote {options.out}")
    return 0


def _grid(options: argparse.Namespace) -> int:
    jobs = grid_jobs(options)
    if options.list:
        for name, job in by_name(jobs).items():
            print(f"{name}: {state(job, options.to, options.out)}")
        return 0
    failed = run_grid(jobs, options.to, options.out, options.workers, options.device)
    return _failures(failed)


def _failures(failed: dict[str, str]) -> int:
    if failed:
        print(f"{len(failed)} runs failed; mend what their lines say, then run the same again", file=sys.stderr)
    return 1 if failed else 0


def _reproduce(options: argparse.Namespace) -> int:
    failed = reproduce(
        options.tables, _data_name(options), _source(options), options.size, options.seeds, settings=options.set,
        to=options.to, out=options.out, workers=options.workers, device=options.device, only_list=options.list,
    )  # fmt: skip
    return _failures(failed)


def grid_jobs(options: argparse.Namespace) -> list[Job]:
    """The runs of ``grid``, seed by seed."""
    names = options.recipes.split(",")
    if strangers := [name for name in names if name not in ROWS]:
        raise BadInput(f"--recipes {','.join(strangers)}: choose some of {','.join(ROWS)}")
    if options.seeds < 1:
        raise BadInput(f"--seeds {options.seeds}: give 1 or more")
    changes = [(name, text.split(",")) for name, _, text in (change.partition("=") for change in options.set)]
    jobs = []
    for seed, name, *values in product(range(options.seeds), names, *(texts for _, texts in changes)):
        settings = [f"{change}={value}" for (change, _), value in zip(changes, values, strict=True)]
        one = argparse.Namespace(**vars(options) | dict(recipe=name, seed=seed, set=settings))
        jobs.append(Job(_chosen_recipe(one), _data_name(one), _source(one)))
    return jobs


def _score(options: argparse.Namespace) -> int:
    clips = clips_to_score(options.clips, options.machine)
    with redirect_stdout(sys.stderr):  # where Ray tells of workers that died
        scores, bad = score_table(options.model, options.device, clips, options.workers)
    clips, scores = clips.drop(index=list(bad)), np.delete(scores, list(bad))
    for line in bad.values():
        print(line, file=sys.stderr)
    columns = [column for column in ("path", "machine_type", "machine_id", "label", "index") if column in clips]
    table = clips[columns].assign(score=scores).to_csv(index=False)
    if options.out is None:
        print(table, end="")
    else:
        write_whole(options.out, table.encode())
        print(f"wrote {len(clips)} scores to {options.out}")
    if bad:
        print(f"{len(bad)} files left out, {len(clips)} scored", file=sys.stderr)
    return 1 if bad else 0


def clips_to_score(paths: Sequence[Path], machine: str | None) -> pd.DataFrame:
    """A table of clips from what the command line was given.

    Args:
        paths: a challenge tree, a folder of precomputed features, folders of WAV files, WAV files, or one CSV table
            with a column path (relative to its own folder), and machine_type and machine_id or a ``machine`` for all.
        machine: such as "fan/id_00", where paths do not tell.

    Raises:
        BadInput: nothing there, or the machine of a file is not known.
    """
    if len(paths) == 1 and paths[0].suffix == ".csv":
        return _table_to_score(paths[0], machine)
    if len(paths) == 1 and (paths[0] / "clips.csv").is_file():
        return load_clips("features", root=paths[0])
    if len(paths) == 1 and paths[0].is_dir() and machine is None and not any(paths[0].glob("*.wav")):
        return load_clips("dcase2020", root=paths[0])
    files = []
    for path in paths:
        found = sorted(path.rglob("*.wav")) if path.is_dir() else [path]
        if not found:
            raise BadInput(f"{path}: no .wav file in this folder; give a folder of clips")
        files += found
    return pd.DataFrame([_file_to_score(path, machine) for path in files])


def _file_to_score(path: Path, machine: str | None) -> dict[str, str]:
    """The row of one file; its machine from the challenge's names (.../fan/test/normal_id_00_00000000.wav)."""
    machine_type, _, machine_id = (machine or "").partition("/")
    label = next((label for label in ("normal", "anomaly") if path.name.startswith(label + "_")), "unknown")
    if machine is None:
        machine_type = next((part for part in reversed(path.resolve().parts) if part in TYPES), "")
        before, found, number = path.stem.partition("id_")
        machine_id = f"id_{number[:2]}" if found and number[:2].isdigit() else ""
    if not machine_type or not machine_id:
        raise BadInput(f"{path}: its path does not tell the machine; say which with --machine fan/id_00")
    return dict(path=str(path), machine_type=machine_type, machine_id=machine_id, split="test", label=label)


def _table_to_score(path: Path, machine: str | None) -> pd.DataFrame:
    if not path.is_file():
        raise BadInput(f"{path}: no such table")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "index" in table:  # of precomputed features: the row in the file that path names
            table["index"] = table["index"].astype("int64")
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a CSV table ({error})") from None
    if "path" not in table:
        raise BadInput(f"{path}: no column 'path'; write one row a clip with path, machine_type, machine_id")
    if machine is not None:
        table["machine_type"], _, table["machine_id"] = machine.partition("/")
    if missing := [name for name in ("machine_type", "machine_id") if name not in table]:
        raise BadInput(f"{path}: no column {', '.join(missing)}; add it, or say --machine fan/id_00 for all rows")
    here = [name if name.startswith("hall://") else str(path.parent / name) for name in table["path"]]
    return table.assign(path=here)


if __name__ == "__main__":
    sys.exit(main())
