"""02_quantize.py: k-means and assignment against independent results, diagnostics by hand, missing
modalities, bad files.
"""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.cluster import KMeans

from common import data
from common.tokens import MODALITIES
from steps.quantize import report
from steps.quantize import rows as chunked

quantize = importlib.import_module("02_quantize")


def make_data(folder, n=60, seed=0, missing=()):
    """A catalogue of n tracks with embeddings of 4 to 8 dimensions; playlist lacks the last five
    tracks.
    """
    rng = np.random.default_rng(seed)
    data.write_jsonl(
        folder / "tracks.jsonl",
        [{"track_id": f"t{i}", "title": f"Song {i}", "artist": "Band"} for i in range(n)],
    )
    for dim, modality in enumerate(MODALITIES, 4):
        array = rng.normal(size=(n, dim)).astype(np.float32)
        array[-5:] = np.nan if modality == "playlist" else array[-5:]
        if modality not in missing:
            data.save_npy(folder / "embeddings" / f"{modality}.npy", array)
    return folder


def run(folder, *flags):
    quantize.main(["--data-dir", str(folder), *map(str, flags)])


def info_of(folder):
    return json.loads((folder / "codebooks" / "info.json").read_text())


# ---------------------------------------------------------------- k-means and assignment


@pytest.mark.parametrize(
    "n, k",
    [(10, 8), (36, 8), (37, 16), (1000, 64), (17_000, 256), (160_000, 1024), (1_700_000, 1024)],
)
def test_k_by_the_number_of_tracks(n, k):
    """By hand: 2 sqrt(36) = 12 lies between 8 and 16, 2 sqrt(1000) = 63.2, 2 sqrt(17000) = 260.8, 2
    sqrt(160000) = 800.
    """
    assert quantize.choose_k(n) == k


def test_codebook_is_that_of_scikit_learn():
    """Golden: the inertia that sklearn itself reports for the same rows, and each centroid the mean
    of its rows.
    """
    rows = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    codebook = quantize.fit_codebook(rows, 12, n_init=2, seed=3)
    codes = quantize.assign(rows, codebook)
    kmeans = KMeans(12, n_init=2, random_state=3).fit(rows)
    assert np.array_equal(codes, kmeans.labels_)
    assert quantize.distances_to_own(rows, codebook, codes).sum() == pytest.approx(
        kmeans.inertia_, rel=1e-5
    )
    for code in range(12):
        np.testing.assert_allclose(codebook[code], rows[codes == code].mean(0), atol=1e-5)


class OnlyChunks:
    """An array that refuses to give many rows at once: what k-means holds does not grow with the
    catalogue.
    """

    def __init__(self, array, most):
        self.array, self.most, self.shape = array, most, array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        taken = self.array[rows]
        assert taken.ndim == 1 or len(taken) <= self.most, f"{len(taken)} rows at once"
        return taken


def test_growing_samples_come_close_to_k_means(monkeypatch):
    """Samples of 400 and 1,600, then all rows, by a chunk of 128 at most: within 1% of sklearn's
    best on all.
    """
    rng = np.random.default_rng(1)
    rows = (
        rng.normal(size=(24, 8))[rng.integers(24, size=5000)] + 0.4 * rng.normal(size=(5000, 8))
    ).astype(np.float32)
    best = KMeans(16, n_init=5, random_state=0).fit(rows).inertia_
    for module, name, value in (
        (quantize, "SAMPLE", 400),
        (chunked, "CHUNK", 128),
        (chunked, "HELD", 128 * 8 * 4 * 3),
    ):
        monkeypatch.setattr(module, name, value)
    passes, lloyd = [], quantize.lloyd

    def spy(rows, centroids, *args, **kwargs):
        rows.array = OnlyChunks(rows.array, 128)
        passes.append(len(rows))
        return lloyd(rows, centroids, *args, **kwargs)

    monkeypatch.setattr(quantize, "lloyd", spy)
    missing = rng.permutation(6000)[:1000]
    embeddings = np.insert(rows, np.sort(missing) - np.arange(1000), np.nan, axis=0)
    codebook = quantize.fit_codebook(embeddings, 16, n_init=3)
    assert passes == [400, 400, 400, 1600, 5000]
    codes = quantize.assign(rows, codebook)
    assert quantize.distances_to_own(rows, codebook, codes).sum() < 1.01 * best
    for code in range(16):  # centroids are means
        assert np.abs(codebook[code] - rows[codes == code].mean(0)).max() < 0.02
    assert np.array_equal(quantize.fit_codebook(embeddings, 16, n_init=3), codebook)


def test_a_cluster_without_rows_begins_again():
    """By hand: nothing is near 9; the farthest row, 5, takes its place, and the means of {0, 1},
    {4}, {5} follow.
    """
    rows = np.float32([[0], [1], [4], [5]])
    inertia, means = quantize.lloyd(
        chunked.Rows(rows, np.arange(4), "cpu"), torch.tensor([[0.0], [1.0], [9.0]])
    )
    assert sorted(means[:, 0].tolist()) == [0.5, 4, 5] and inertia == 0.5
    same = chunked.Rows(
        np.zeros((4, 1), np.float32), np.arange(4), "cpu"
    )  # no use: all rows are the same
    assert quantize.lloyd(same, torch.tensor([[0.0], [1.0], [9.0]]))[1].tolist() == [[0.0]] * 3


def test_a_longer_step_ends_in_means_too():
    rows = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    _, means = quantize.lloyd(
        chunked.Rows(rows, np.arange(300), "cpu"), torch.from_numpy(rows[:12]), quantize.STEP
    )
    codes = quantize.assign(rows, means.numpy())
    for code in range(12):
        np.testing.assert_allclose(means[code], rows[codes == code].mean(0), atol=1e-5)


def test_assign_against_brute_force():
    rng = np.random.default_rng(0)
    rows, codebook = (
        rng.normal(size=(1000, 7)).astype(np.float32),
        rng.normal(size=(30, 7)).astype(np.float32) * 2 + 1,
    )
    expected = ((rows[:, None].astype(float) - codebook[None]) ** 2).sum(2).argmin(1)
    rows[[5, 999]], expected[[5, 999]] = np.nan, -1
    for chunk in (64, 1000, 8192):
        codes = quantize.assign(rows, codebook, chunk)
        assert codes.dtype == np.int16 and np.array_equal(codes, expected)


def test_assign_ties_and_refusals():
    assert quantize.assign(
        np.zeros((1, 2)), np.array([[3.0, 4.0], [1.0, 0.0], [-1.0, 0.0]])
    ).tolist() == [1]
    with pytest.raises(ValueError, match="3 dimensions, the codebook has 2"):
        quantize.assign(np.zeros((1, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="at most 32767"):
        quantize.assign(np.zeros((1, 1)), np.zeros((32_768, 1)))


# ---------------------------------------------------------------- diagnostics, by hand


def test_diagnostics_by_hand():
    codes = np.array([0, 0, 0, 0, 1, 1, 3, 3, -1, -1], np.int16)  # shares 1/2, 1/4, 1/4: 1.5 bits
    distances = np.array([1, 1, 1, 1, 0, 0, 2, 2, np.nan, np.nan])
    assert report.describe_codes(codes, distances, k=4) == {
        "clusters": 4,
        "used": 3,
        "dead": 1,
        "tiny": 2,
        "largest": 4,
        "entropy_bits": 1.5,
        "perplexity": 2.83,
        "inertia": 8.0,
        "missing_share": 0.2,
    }


def test_collisions_by_hand():
    codes = np.array(
        [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, -1], [-1, 2, 3, 4, 5]],
        np.int16,
    )
    assert report.describe_collisions(codes) == {"unique_share": 0.4, "largest_collision": 3}


def test_nearest_tracks_by_hand():
    codes, distances = np.array([1, -1, 0, 1, 1, 3]), np.array([0.5, np.nan, 0.1, 0.2, 0.9, 0.0])
    assert [rows.tolist() for rows in report.nearest_tracks(codes, distances, 4, n=2)] == [
        [2],
        [3, 0],
        [],
        [5],
    ]


# ---------------------------------------------------------------- the script


def test_codes_codebooks_and_examples(tmp_path, capsys):
    make_data(tmp_path)
    run(tmp_path, "--k", 6)
    out = capsys.readouterr().out
    codes, info = np.load(tmp_path / "codes.npy"), info_of(tmp_path)
    assert codes.shape == (60, 5) and codes.dtype == np.int16
    assert (
        (codes[-5:, 0] == -1).all()
        and (codes[:-5, 0] >= 0).all()
        and (codes[:, 1:] >= 0).all()
        and codes.max() == 5
    )
    assert (
        info["k"] == 6
        and info["normalised"] is False
        and list(info["modalities"]) == list(MODALITIES)
    )
    for column, modality in enumerate(MODALITIES):
        rows, codebook = (
            np.load(tmp_path / "embeddings" / f"{modality}.npy"),
            np.load(tmp_path / "codebooks" / f"{modality}.npy"),
        )
        assert (
            codebook.shape == (6, 4 + column)
            and codebook.dtype == np.float32
            and np.isfinite(codebook).all()
        )
        distances = ((rows[:, None] - codebook[None]) ** 2).sum(2)
        present = codes[:, column] >= 0
        assert np.array_equal(distances.argmin(1)[present], codes[present, column])
        assert info["modalities"][modality]["inertia"] == pytest.approx(
            distances.min(1)[present].sum(), rel=1e-5
        )
        kmeans = KMeans(6, n_init=1, random_state=0).fit(
            rows[present]
        )  # fitted on the tracks that have the modality
        assert info["modalities"][modality]["inertia"] == pytest.approx(kmeans.inertia_, rel=1e-5)
    examples = [row for _, row in data.read_jsonl(tmp_path / "codebooks" / "examples.jsonl", "")]
    assert len(examples) == 5 * 6
    for row in examples:
        column = MODALITIES.index(row["modality"])
        assert (
            row["token"] == f"<|{row['modality']}-{row['code']}|>"
            and row["n_tracks"] == (codes[:, column] == row["code"]).sum()
        )
        assert len(row["track_ids"]) == min(row["n_tracks"], 5)
        assert {codes[int(t[1:]), column] for t in row["track_ids"]} == {row["code"]}
    largest = max(examples[:6], key=lambda row: row["n_tracks"])  # of playlist's
    assert (
        f"{largest['n_tracks']} tracks: {'; '.join(largest['tracks'][:3])}" in out
        and " by Band" in largest["tracks"][0]
    )
    assert "python 03_synthesize.py" in out.splitlines()[-1]


def test_missing_modalities_give_columns_of_minus_one(tmp_path, capsys):
    make_data(tmp_path)
    run(tmp_path)
    assert (tmp_path / "codebooks" / "audio.npy").exists()
    (tmp_path / "embeddings" / "audio.npy").unlink()  # no such file
    data.save_npy(
        tmp_path / "embeddings" / "lyrics.npy", np.full((60, 3), np.nan, np.float32)
    )  # a file, but no track has it
    run(tmp_path, "--no-resume")
    out, codes = capsys.readouterr().out, np.load(tmp_path / "codes.npy")
    assert (codes[:, 3:] == -1).all() and (codes[:-5, :3] >= 0).all()
    assert (
        "audio.npy is not there; its column of codes is -1" in out
        and "lyrics: no track has it" in out
    )
    assert not (tmp_path / "codebooks" / "audio.npy").exists() and list(
        info_of(tmp_path)["modalities"]
    ) == list(MODALITIES[:3])


def test_fewer_different_rows_than_clusters(tmp_path, capsys):
    make_data(tmp_path)
    data.save_npy(
        tmp_path / "embeddings" / "semantic.npy", np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    )
    run(tmp_path, "--k", 16)
    assert "semantic: only 3 different rows, so 3 clusters instead of 16" in capsys.readouterr().out
    column, row = np.load(tmp_path / "codes.npy")[:, 1], info_of(tmp_path)["modalities"]["semantic"]
    # one code for each different row
    assert len(set(zip(column, np.arange(60) % 3, strict=True))) == 3
    assert (row["clusters"], row["dead"], info_of(tmp_path)["k"]) == (3, 0, 16) and row[
        "inertia"
    ] == pytest.approx(0, abs=1e-9)


def test_assign_only_gives_the_same_codes_and_codes_for_new_tracks(tmp_path, capsys):
    make_data(tmp_path)
    run(tmp_path, "--k", 8)
    codes, codebook = (
        np.load(tmp_path / "codes.npy"),
        (tmp_path / "codebooks" / "audio.npy").read_bytes(),
    )
    old = {m: np.load(tmp_path / "embeddings" / f"{m}.npy") for m in MODALITIES}
    make_data(tmp_path, n=70, seed=9)  # ten more tracks, at the end
    for modality, array in old.items():
        new = np.load(tmp_path / "embeddings" / f"{modality}.npy")
        new[:60] = array
        new[60] = array[0]
        data.save_npy(tmp_path / "embeddings" / f"{modality}.npy", new)
    with pytest.raises(SystemExit, match="another input"):
        run(tmp_path, "--k", 8)
    run(tmp_path, "--assign-only")
    again = np.load(tmp_path / "codes.npy")
    assert (
        again.shape == (70, 5)
        and np.array_equal(again[:60], codes)
        and np.array_equal(again[60], codes[0])
    )
    assert (tmp_path / "codebooks" / "audio.npy").read_bytes() == codebook and info_of(tmp_path)[
        "k"
    ] == 8


def test_assign_only_needs_matching_codebooks(tmp_path):
    make_data(tmp_path)
    with pytest.raises(
        SystemExit,
        match=r"info.json is missing; make it with: .*--assign-only needs saved codebooks",
    ):
        run(tmp_path, "--assign-only")
    run(tmp_path)
    before = (tmp_path / "codes.npy").read_bytes()
    data.save_npy(tmp_path / "embeddings" / "lyrics.npy", np.ones((60, 99), np.float32))
    with pytest.raises(
        SystemExit, match="codebooks/lyrics.npy: 7 dimensions, but embeddings/lyrics.npy has 99"
    ):
        run(tmp_path, "--assign-only")
    with pytest.raises(SystemExit, match="--k 8 with --assign-only"):
        run(tmp_path, "--assign-only", "--k", 8)
    assert (tmp_path / "codes.npy").read_bytes() == before


def test_second_run_and_seed(tmp_path, capsys):
    make_data(tmp_path)
    run(tmp_path)
    first = (tmp_path / "codes.npy").read_bytes()
    capsys.readouterr()
    run(tmp_path)
    assert capsys.readouterr().out == "02_quantize: already done (--no-resume does it again)\n"
    run(tmp_path, "--no-resume")
    assert (tmp_path / "codes.npy").read_bytes() == first
    with pytest.raises(SystemExit, match=r"seed \(was 0, is 1\)"):
        run(tmp_path, "--seed", 1)


def test_a_killed_run_fits_only_what_is_left(tmp_path, monkeypatch):
    killed, whole = make_data(tmp_path / "killed"), make_data(tmp_path / "whole")
    run(whole)
    fit, fitted = quantize.fit, []

    def fit_until(modality, *rest):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(modality)
        return fit(modality, *rest)

    monkeypatch.setattr(quantize, "fit", fit_until)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    monkeypatch.setattr(
        quantize, "fit", lambda modality, *rest: fitted.append(modality) or fit(modality, *rest)
    )
    run(killed)
    assert fitted == list(MODALITIES)  # each once
    for name in ("codes.npy", *(f"codebooks/{m}.npy" for m in MODALITIES)):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not list(killed.glob("codebooks/*.part.npy"))
    (killed / "codebooks" / "audio.part.npy").write_bytes(b"of another run")
    run(killed, "--no-resume")
    assert (killed / "codes.npy").read_bytes() == (whole / "codes.npy").read_bytes()


def test_two_processes_find_what_one_finds(tmp_path):
    """Under torchrun, with a first sample of 64 rows, so that there are passes over samples and
    over all rows; four
    of five rows are alike: the first sample has fewer different ones than clusters, and some stay
    empty for a while.
    """
    one, two = make_data(tmp_path / "one", n=500), make_data(tmp_path / "two", n=500)
    for folder in (one, two):
        rng = np.random.default_rng(3)
        for m in MODALITIES:
            rows = np.load(folder / "embeddings" / f"{m}.npy")
            rows[np.arange(500) % 5 > 0] = rows[0]
            rows[::5] = rng.normal(size=rows[::5].shape)
            data.save_npy(folder / "embeddings" / f"{m}.npy", rows)
    script = (
        "import sys, importlib; q = importlib.import_module('02_quantize'); "
        "q.SAMPLE, q.PER_CODE = 64, 1; q.main(sys.argv[1:])"
    )
    (tmp_path / "small_sample.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"
    )
    flags = ["--k", "32", "--device", "cpu"]
    alone = subprocess.run(
        [sys.executable, tmp_path / "small_sample.py", *flags, "--data-dir", one],
        capture_output=True,
        text=True,
        check=True,
    )
    both = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            tmp_path / "small_sample.py",
            *flags,
            "--data-dir",
            two,
        ],
        capture_output=True,
        text=True,
    )
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("wrote codes.npy") == 1 and "wrote codes.npy" in alone.stdout
    for m in MODALITIES:
        np.testing.assert_allclose(
            np.load(two / "codebooks" / f"{m}.npy"),
            np.load(one / "codebooks" / f"{m}.npy"),
            rtol=1e-4,
            atol=1e-5,
        )
    assert np.array_equal(np.load(two / "codes.npy"), np.load(one / "codes.npy"))
    assert json.loads((two / "runs" / "02_quantize.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    "array, message",
    [
        (np.ones((59, 3), np.float32), "59 rows, but tracks.jsonl has 60"),
        (np.ones((60, 3)), "float64 of shape .60, 3.; expected float32"),
        (np.ones(60, np.float32), "expected float32 with 2 dimensions"),
        (np.full((60, 3), np.inf, np.float32), "row 0 has values that are not finite"),
        (
            np.where(np.arange(180).reshape(60, 3) == 100, np.nan, 1).astype(np.float32),
            "row 33 has values that are not finite",
        ),
        (b"PK not an array", "not a whole .npy file"),
    ],
)
def test_foreign_embeddings_are_refused(tmp_path, array, message):
    path = make_data(tmp_path) / "embeddings" / "lyrics.npy"
    path.write_bytes(array) if isinstance(array, bytes) else data.save_npy(path, array)
    with pytest.raises(
        SystemExit, match=f"lyrics.npy: .*{message}.*python 01_extract_embeddings.py"
    ):
        run(tmp_path)
    assert (
        not (tmp_path / "codes.npy").exists()
        and not (tmp_path / "codebooks").exists()
        and not (tmp_path / "runs").exists()
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--k", 1], "--k 1: from 2 to 32767"),
        (["--k", 40_000], "--k 40000: from 2 to 32767"),
        (["--n-init", 0], "--n-init 0"),
        (["--device", "cuba"], "--device cuba: torch knows no such device"),
    ],
)
def test_bad_arguments(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        run(make_data(tmp_path), *flags)
    assert not (tmp_path / "runs").exists()


def test_no_embeddings_at_all(tmp_path):
    with pytest.raises(
        SystemExit,
        match="no track has any modality. Make the embeddings with: python 01_extract",
    ):
        run(make_data(tmp_path, missing=MODALITIES))
