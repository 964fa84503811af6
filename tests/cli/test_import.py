"""`oodbench import`: score files of other programs become results like any other, marked as imported."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from oodbench.data import catalog
from oodbench.data.load import LoadOptions
from oodbench.errors import UserError
from oodbench.metrics.score_files import ScorePart
from oodbench.pipeline import imported, score_sets
from oodbench.pipeline.imported import parse_access
from oodbench.results import Result, read, row_files, rows
from oodbench.storage.store import Store
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference" / "glyphs" / "glyphs"
SIZES = {"id": 40, "sky": 30, "sea": 20}


@dataclass(frozen=True)
class Place:
    """A benchmark of three folders of (empty) images, and random scores of each set by image name."""

    folder: Path
    scores: dict[str, pd.DataFrame]
    cli: Cli

    def run(self, *scores: str, **changes: str | None) -> tuple[int, str, str]:
        """Import scores with usual options, unless they are changed; None leaves one out, "" is a flag."""
        usual = {
            "benchmark": f"folder:{self.folder}/id",
            "ood": self.ood,
            "method": "mine",
            "encoder": "ViT-B-16/openai",
        }
        options = {**usual, "higher": "id", "bootstrap": "20", **changes}
        words = [word for k, v in options.items() if v is not None for word in (f"--{k.replace('_', '-')}", v) if word]
        done = self.cli("import", *words, *scores, cwd=self.folder)
        return done.returncode, done.stdout, done.stderr

    @property
    def ood(self) -> str:
        return f"folder:{self.folder}/sky,folder:{self.folder}/sea"

    def result(self) -> Result:
        (file,) = row_files(self.folder / "results")
        return read(file)


@pytest.fixture
def place(tmp_path: Path, cli: Cli) -> Place:
    random, scores = np.random.default_rng(3), {}
    for name, n in SIZES.items():
        names = [f"{'cat' if i % 2 else 'dog'}/{name}{i:03}.png" for i in range(n)]
        for one in names:
            (tmp_path / name / one).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / one).write_bytes(name.encode())
        ordered = sorted(names)
        values = np.round(random.normal(name == "id", 1, n), 1)  # with ties
        scores[name] = pd.DataFrame({"name": ordered, "score": values}).sample(frac=1, random_state=0)
    return Place(tmp_path, scores, cli)


def expected(on_id: Sequence[float], on_ood: Sequence[float]) -> dict[str, float]:
    """AUROC, FPR95 and AUPR by scikit-learn."""
    truth, values = np.r_[np.ones(len(on_id)), np.zeros(len(on_ood))], np.r_[on_id, on_ood]
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    ood_fpr, ood_tpr, _ = roc_curve(1 - truth, -values, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(truth, values),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "fpr95_ood": ood_fpr[np.argmax(ood_tpr >= 0.95)],
        "aupr_in": average_precision_score(truth, values),
        "aupr_out": average_precision_score(1 - truth, -values),
    }


def in_list_order(place: Place) -> None:
    for name, frame in place.scores.items():
        np.save(place.folder / f"{name}.npy", frame.sort_values("name")["score"].to_numpy())


def by_path(place: Place) -> None:
    for name, frame in place.scores.items():
        paths = [rf"C:\data\{one}".replace("/", "\\") for one in frame["name"]]
        frame.assign(name=paths).to_csv(place.folder / f"mine_{name}_scores.csv", index=False)


def by_file_name(place: Place) -> None:
    (place.folder / "all").mkdir()
    for name, frame in place.scores.items():
        text = "".join(f"{one.rpartition('/')[2]} {s}\n" for one, s in frame.itertuples(index=False))
        (place.folder / "all" / f"{name}.txt").write_text(text)


def one_file(place: Place) -> None:
    frames = [frame.assign(dataset=name) for name, frame in place.scores.items()]
    pd.concat(frames).sample(frac=1, random_state=1).to_parquet(place.folder / "all.parquet")


def arrays_of_the_other_sign(place: Place) -> None:
    ordered = {name: -frame.sort_values("name")["score"] for name, frame in place.scores.items()}
    np.savez(place.folder / "all.npz", **ordered)


WAYS: dict[Callable[[Place], None], tuple[list[str], str]] = {
    in_list_order: (["id.npy", "SEA=sea.npy", "sky.npy"], "id"),
    by_path: (["mine_id_scores.csv", "mine_sky_scores.csv", "mine_sea_scores.csv"], "id"),
    by_file_name: (["all"], "id"),
    one_file: (["all.parquet"], "id"),
    arrays_of_the_other_sign: (["all.npz"], "ood"),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_metrics_equal_scikit_learn(way: Callable[[Place], None], place: Place) -> None:
    way(place)
    files, higher = WAYS[way]
    code, out, err = place.run(*files, higher=higher)
    assert code == 0 and "mine: imported scores, it is not stated who computed them" in " ".join(out.split()), err
    row = place.result()
    for one, name in zip(row.ood, ("sky", "sea"), strict=True):
        found = {metric: getattr(one, metric) for metric in expected([0], [0])}
        assert found == pytest.approx(expected(place.scores["id"]["score"], place.scores[name]["score"]), abs=1e-12)
        assert (one.n, one.expected, one.title) == (SIZES[name], SIZES[name], name)
        assert all(low <= found[metric] <= high for metric, (low, high) in one.intervals.items())
        assert bool(one.list_digest) == (way not in (in_list_order, arrays_of_the_other_sign))
    kept = pd.read_parquet(row_files(place.folder / "results")[0].with_suffix(".parquet"))
    for name, frame in place.scores.items():
        ordered = frame.sort_values("name")
        own = kept[kept["dataset"].astype(str).str.endswith(f"/{name}")]
        assert own["score"].tolist() == ordered["score"].tolist() and own["name"].tolist() == ordered["name"].tolist()
    assert row.imported["higher"] == higher and row.access == {} and row.encoder["architecture"] == "ViT-B-16"
    assert place.cli("report", "--verify", cwd=place.folder).stdout.endswith("1 of 1 results OK\n")


def changed(place: Place, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Write all sets by name, one of them changed."""
    for one, frame in place.scores.items():
        (change(frame) if one == name else frame).to_csv(place.folder / f"{one}.csv", index=False)


def same(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def head(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("name").head(len(frame) - 4)


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, str | None], list[str], str]] = {
    "twice": (lambda f: pd.concat([f, f.iloc[2:3]]), {}, [], r"sky\.csv, line 32: '.*' has a score already, in line 4"),
    "unknown": (lambda f: f.replace(f["name"].iloc[1], "x.png"), {}, [], r"line 3: .*'x\.png' is not one of its"),
    "few": (head, {}, [], r"26 scores for 30 images; without a score: dog/sky022\.png, .* and 1 more;"),
    "nameless": (lambda f: f[["score"]].head(26), {}, [], r"26 scores for 30 images at .*/sky; scores without names"),
    "nan": (lambda f: f.assign(score=np.nan), {}, [], r"no score"),
    "no sign": (same, {"higher": None}, [], r"--higher is missing: which .*\n  --higher id .*\n.*--higher ood"),
    "odd sign": (same, {"higher": "up"}, [], r"--higher up: give id or ood"),
    "sign": (same, {"higher": "ood"}, [], r"mean AUROC is (1|2)\d\.\d\d %.*; write --higher id \((7|8)\d\.\d\d %\)"),
    "one sign": (lambda f: f.assign(score=f["score"] + 1.5), {"higher": "ood"}, [], r"only sea \(.* %\) has the other"),
    "no need": (same, {"force_sign": ""}, [], r"the sign need not be forced"),
    "method": (same, {"method": "a,b"}, [], r"--method a,b: scores are of one method, not of a, b"),
    "access": (same, {"access": "labels"}, [], r"--access labels: access has no field 'labels'"),
    "set": (same, {}, ["id.csv", "sky.csv", "see=sea.csv"], r"'see' is not a set of .*; did you mean 'sea'"),
    "two": (same, {}, ["id.csv", "id=sky.csv"], r"'folder:.*/id' has scores in id\.csv and in sky\.csv; join them"),
    "not asked": (same, {}, ["id.csv", "textures.csv"], r"textures\.csv: its set 'textures' is not among the"),
    "two names": (same, {}, ["id_dtd.csv"], r"the file's name names folder:.*/id and textures of benchmark"),
    "sorted rows": (lambda f: f[["score"]].assign(index=range(29, -1, -1)), {}, [], r"line 2: .*'29' is not one of"),
    "missing": (same, {}, ["id.csv", "sky.csv"], r"no scores of .*/sea; add .*=FILE\n  or .*--ood folder"),
    "name": (same, {}, ["other.csv"], r"the file's name names no set of .*; write SET=other\.csv"),
    "pickle": (same, {}, ["id.pkl"], r"id\.pkl: pickled files are not read"),
    "benchmark": (same, {"benchmark": "moss", "ood": None}, [], r"no dataset 'moss'; did you mean 'mos'"),
    "folder": (same, {"benchmark": "folder:none"}, [], r"dataset 'folder:none' was not found"),
    "partial": (lambda f: pd.concat([f[["score"]]] * 2), {"allow_partial": ""}, [], r"60 scores for 30 images"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_imported_is_refused(case: str, place: Place) -> None:
    change, options, files, message = BAD[case]
    changed(place, "sky", change)
    for name in ("other", "textures", "id_dtd"):
        place.scores["sky"].to_csv(place.folder / f"{name}.csv", index=False)
    code, out, err = place.run(*(files or ["id.csv", "sky.csv", "sea.csv"]), **options)
    assert (code, out) == (2, "") and err.startswith("error: ") and re.search(message, err), err
    assert not (place.folder / "results").exists()


def test_part_of_a_set_and_a_forced_sign(place: Place) -> None:
    changed(place, "sky", head)
    options: dict[str, str] = {
        "higher": "ood",
        "force_sign": "",
        "allow_partial": "",
        "by": "Doe, with x.py",
        "title": "M",
    }
    code, out, err = place.run("id.csv", "sky.csv", "sea.csv", method="mine[k=3]", access="id_labels=16", **options)
    assert code == 0 and "though the mean AUROC is below 50 %" in " ".join(out.split()) and "by Doe" in out, err
    row = place.result()
    assert (row.label, row.parameters, row.title) == ("mine[k=3]", {"k": 3}, "M")
    assert row.ood[0].partial == "partial 26/30" and row.access["group"] == "few-shot" and row.access["id_images"]
    assert row.mean("auroc") < 0.5 and row.imported["forced_sign"] is True
    again = place.run("id.csv", "sky.csv", "sea.csv", method="mine[k=3]", access="id_labels=16", **options)[2]
    assert "replaces" not in again and place.result() == row
    changed(place, "sky", same)
    assert "replaces" in place.run("id.csv", "sky.csv", "sea.csv", method="mine[k=3]", **options)[2]


def test_files_of_other_sets_in_a_folder_are_skipped(place: Place) -> None:
    in_list_order(place)
    np.save(place.folder / "mine_dtd.npy", np.arange(9))
    pd.DataFrame({"dataset": "sun", "score": np.arange(9)}).to_csv(place.folder / "more.csv")
    code, _, err = place.run(str(place.folder))
    assert code == 0, err
    assert f"{place.folder}/mine_dtd.npy (textures), {place.folder}/more.csv (sun)\n" in err
    (place.folder / "sea.npy").unlink()
    code, _, err = place.run(str(place.folder))
    assert code == 2 and re.search(r"no scores of .*/sea \(other sets: .*/mine_dtd\.npy \(textures\)", err)


def test_every_encoder_has_a_folder_of_its_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    in_list_order(place)
    monkeypatch.setattr(imported, "tags", {"ViT-B-16": ["openai", "laion2b"]}.get)  # whose import takes seconds
    files = ("id.npy", "sky.npy", "sea.npy")
    for encoder, note in {
        "编码器": "",
        "模型": "",
        "ViT-B-16/nope": "open_clip has no weights 'nope'; did you mean 'openai'?",
    }.items():
        code, _, err = place.run(*files, encoder=encoder)
        assert code == 0 and ("open_clip" in err) == bool(note) and note in err
    found = [row.encoder for _, row in rows(place.folder / "results")]
    assert {one["name"] for one in found} == {"编码器", "模型", "ViT-B-16/nope"}
    assert len({one["slug"] for one in found}) == 3 and all(one["slug"].isascii() for one in found)


@pytest.mark.parametrize(
    ("benchmark", "ood", "file", "expected"),
    [
        ("glyphs", "glyphs-near", "glyphs-letters.npy", "glyphs-letters"),
        ("glyphs", "glyphs-near", "mine_glyphs.npy", "glyphs"),
        ("cifar100", "svhn", "cifar10.npy", "cifar10"),
        ("cifar100", "svhn", "cifar.npy", "cifar100"),
        ("imagenet1k", "sun", "imagenet.npy", "imagenet1k"),
        ("imagenet1k", "sun", "imagenet-o.npy", "imagenet-o"),
        ("imagenet1k", "textures-5160", "textures.npy", "textures-5160"),
        ("imagenet1k", "sun", "id_DTD scores.npy", ""),
    ],
)
def test_a_set_that_is_not_requested_is_not_another_one(
    benchmark: str, ood: str, file: str, expected: str, tmp_path: Path
) -> None:
    protocol = catalog.protocol(benchmark, (ood,))
    np.save(tmp_path / file, np.arange(3))
    with pytest.raises(UserError) as caught:
        score_sets.assign([str(tmp_path / file)], protocol)
    requested = expected in (protocol.id.name, ood)
    (message,) = caught.value.problems
    if requested:
        missing = ({protocol.id.name, ood} - {expected}).pop()
        assert message.startswith(f"no scores of {missing};")
    else:
        wrong = f"its set '{expected}' is not among" if expected else f"names {protocol.id.name} and textures of"
        assert wrong in message


def test_scores_of_images_that_are_elsewhere_are_sorted_by_name(tmp_path: Path) -> None:
    """Lists are sorted by path, and paired tests take scores in their order."""
    dataset = catalog.dataset("textures")
    names = np.array([f"a/{i:04}.jpg" for i in range(dataset.count or 0)], dtype=object)
    order = np.random.default_rng(0).permutation(len(names))
    file = score_sets.SetFile(tmp_path / "dtd.csv", ScorePart(order.astype(float), names[order]))
    options = LoadOptions(tmp_path, Store(tmp_path / "store"))
    found = score_sets.matched(dataset, "", file, options, is_id=False)
    assert found.names == names.tolist() and found.scores.tolist() == [*range(len(names))]
    assert found.checked.endswith("the order is that of the names") and not found.list_digest


def test_sets_that_are_not_on_this_disk_are_counted(tmp_path: Path, cli: Cli) -> None:
    one = catalog.protocol("mos", ("dtd",))
    options = (
        "--benchmark",
        "mos",
        "--ood",
        "dtd",
        "--method",
        "m",
        "--encoder",
        "a net",
        "--higher",
        "id",
        "--bootstrap",
    )
    counts = {"imagenet": one.id.count, "dtd": one.ood[0][0].count}
    for name, count in counts.items():
        np.save(tmp_path / f"{name}.npy", np.arange(count or 0) % 97 + 40 * (name == "imagenet"))
    done = cli("import", *options, "0", ".", cwd=tmp_path)
    assert (
        done.returncode == 0
        and done.stderr.count("number, with the catalogue; the images are not all on this disk") == 2
    )
    (row,) = (row for _, row in rows(tmp_path / "results"))
    assert (row.id.n, row.id.list_digest, row.encoder) == (one.id.count, "", {"name": "a net", "slug": "a-net"})
    np.save(tmp_path / "dtd.npy", np.arange(99))
    done = cli("import", *options, "0", ".", cwd=tmp_path)
    assert done.returncode == 2 and re.search(r"99 scores for 5,640 images that the catalogue declares", done.stderr)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("none", ()),
        ("lm_words", ("words from a language model",)),
        ("id_labels=all", ("ID images", "ID labels")),
        ("id_labels=4,stream", ("4 labelled ID images a class", "test stream")),
    ],
)
def test_access(text: str, facts: tuple[str, ...]) -> None:
    card = parse_access(text)
    assert card and card.facts == facts


@pytest.fixture(scope="module")
def glyphs(new_store: Callable[[Path], Path], cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the project, and one of them imported from its scores."""
    folder = tmp_path_factory.mktemp("glyphs")
    shutil.copytree(REFERENCE, folder / "results" / "runs" / "glyphs" / "glyphs")
    words = ("--method", "mcm", "--encoder", "glyphs", "--higher", "id", REFERENCE / "mcm.parquet")
    assert cli("import", "--benchmark", "glyphs", *words, cwd=folder).returncode == 0
    return folder


def test_scores_that_oodbench_exported_give_the_same_numbers(glyphs: Path, cli: Cli) -> None:
    (file,) = (glyphs / "results").rglob("mcm-imported-*.json")
    found, own = asdict(read(file)), asdict(read(REFERENCE / "mcm.json"))
    same = ("id", "ood", "mean_intervals", "uncertainty", "conventions", "benchmark", "benchmark_title", "label")
    assert {key: found[key] for key in same} == {key: own[key] for key in same}
    assert pd.read_parquet(file.with_suffix(".parquet")).equals(pd.read_parquet(REFERENCE / "mcm.parquet"))
    done = cli("diff", file, REFERENCE / "mcm.json")
    assert done.returncode == 0 and "equal in all digits" in done.stdout


@pytest.mark.slow
def test_an_imported_result_is_in_the_table_of_its_benchmark(glyphs: Path, cli: Cli) -> None:
    options = ("report", "--methods", "mcm,msp")
    table = cli(*options, cwd=glyphs).stdout
    assert table.count("encoder glyphs") == 1 and "Encoder weights: 1af1f5ee86ae" in table
    assert table.count("imported scores, it is not stated who") == 1 and "Access not known" in table
    latex = cli(*options, "--format", "latex", cwd=glyphs).stdout
    assert latex.count("imported scores") == 1
    lines = pd.read_csv(io.StringIO(cli(*options, "--format", "csv", cwd=glyphs).stdout))
    assert sorted(lines["status"]) == ["imported", "ok", "ok"] and lines["table"].nunique() == 1
    assert "measured" not in " ".join(lines[lines["status"] == "imported"].astype(str).sum())
    cli("report", "--format", "html", "-o", "t.html", "--no-figures", cwd=glyphs)
    assert "imported scores" in (glyphs / "t.html").read_text() and "MCM, imported" not in latex
    shown = cli("report", "--methods", "mcm", "--compare", "published", cwd=glyphs)
    assert shown.returncode == 2  # none is published
