"""Baseline: CLAP, which hears the tracks and reads the query (the paper's section 5; Wu et al. 2023).

A track is its audio: windows of 10 s, each encoded for itself, their mean. (transformers' feature extractor would
crop longer audio at random.) A query is a text in one of HISTORIES, chosen on valid; tracks that were played count
by their audio. A track's score is the cosine; a track without readable audio comes last, in an order drawn by lot.

    clap         the checkpoint as it is (zero-shot)
    clap-tuned   --tune: the text side is fine-tuned on the training dialogues as in baselines/dense.py; the audio
                 vectors stay as they are

No checkpoint is downloaded unasked: --clap-model names one. --random-weights tries the script without: a small model
that knows nothing, whose output goes to predictions_trial/, where 06_evaluate.py does not look.

Reads   tracks.jsonl and its audio files, dialogues_train.jsonl (--tune), dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/clap.jsonl, predictions/clap-tuned.jsonl (test), the same in predictions_valid/ (valid),
        results/clap_forms.csv, results/clap-tuned_forms.csv, embeddings/clap.npy (N, D) float32, NaN without audio,
        embeddings/clap_failed.jsonl (audio that could not be used, and why), clap_model/; while it learns, clap.part/

Trial   python baselines/clap.py --random-weights --tune --steps 4 --eval-every 2
Full    hf download laion/larger_clap_music --local-dir larger_clap_music
        python baselines/clap.py --data-dir data/mpd --clap-model larger_clap_music --tune --workers 16
The full command was not run: the checkpoint could not be had where this was built.

A killed run goes on from its last chunk of tracks, or its last validation, when the same command is given again.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines.dense import (HISTORIES as TEXT_HISTORIES, TUNING, draw_batch, embed_turns, fit, info_nce, load_examples,
                             rank_system, save_folder, score_turns)
from common import data, runs, turns
from common.process import resolve_device
from steps.extract_embeddings.audio_workers import start_worker
from steps.extract_embeddings.chunks import fill_in_chunks, is_finished
from steps.extract_embeddings.clap import embed_windows, load_clap, mean_of_windows, mel_windows


HISTORIES = tuple(history for history in TEXT_HISTORIES if history != "turns joined")  # that one has texts of tracks
TRAINED = ("queries joined", "last query")
TEXT_TOKENS = 77     # CLAP has learnt from texts of at most this
CHUNK = 64           # tracks between two marks from which a killed run can go on
PLACE = ("data_dir", "resume", "device", "workers", "tune")  # flags that change no system


# ---------------------------------------------------------------- the model

def random_clap(texts, seed, device):
    """The same of a very small CLAP with random weights, its words learnt from `texts`: for trials only."""
    from steps.train.base_models import tiny_tokenizer
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
    tokenizer = tiny_tokenizer(texts)
    torch.manual_seed(seed)
    config = ClapConfig(
        text_config=dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=64, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
                         initializer_factor=10.0),  # with smaller weights all texts would be nearly the same
        audio_config=dict(patch_embeds_hidden_size=16, hidden_size=32, depths=(1, 1), num_attention_heads=(2, 2),
                          num_hidden_layers=2),
        projection_dim=16)
    return ClapModel(config).to(device).eval(), tokenizer, ClapFeatureExtractor(truncation="rand_trunc")


# ---------------------------------------------------------------- audio

def read_windows(path, extractor):
    """The spectrograms of one audio file (see steps.extract_embeddings.clap.mel_windows), or the reason why not, str."""
    try:
        return mel_windows(path, extractor)
    except ValueError as error:
        return str(error)


def write_audio(folder, tracks, data_dir, model, extractor, workers):
    """embeddings/clap.npy and clap_failed.jsonl, chunk by chunk, so that a killed run can go on."""
    def encode(rows):
        vectors, failed = np.full((rows.stop - rows.start, model.config.projection_dim), np.nan, np.float32), []
        audible = [i for i in range(rows.start, rows.stop) if tracks[i]["audio_path"]]
        paths = [Path(data_dir) / tracks[i]["audio_path"] for i in audible]
        found = (pool.map if pool else map)(read_windows, paths, [extractor] * len(paths))
        for i, mels in zip(audible, found):
            if isinstance(mels, str):
                failed.append({"track_id": tracks[i]["track_id"], "audio_path": tracks[i]["audio_path"], "reason": mels})
            else:
                vectors[i - rows.start] = mean_of_windows(embed_windows(model, mels))
        return vectors, failed

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, start_worker) if workers > 1 else nullcontext() as pool:
        part, failed = fill_in_chunks(folder, "clap", (len(tracks), model.config.projection_dim), CHUNK, encode)
    data.write_jsonl(folder / "clap_failed.jsonl", failed)
    os.replace(part, folder / "clap.npy")
    print(f"clap: {sum(not track['audio_path'] for track in tracks)} tracks have no audio_path; {len(failed)} files could not "
          f"be used")


# ---------------------------------------------------------------- text

class TextSide(NamedTuple):
    """What baselines/dense.py wants of an encoder of queries."""
    model: torch.nn.Module
    tokenizer: object

    def encode_batch(self, texts):
        """Texts -> (B, D), length 1, with a gradient."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        return self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output

    def encode_queries(self, texts, size=64):
        """Texts -> (n, D) float32, length 1. Texts of like length share a batch."""
        vectors = np.empty((len(texts), self.model.config.projection_dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for first in range(0, len(order), size):
            rows = order[first:first + size]
            with torch.inference_mode():
                vectors[rows] = self.encode_batch([texts[i] for i in rows]).cpu().numpy()
        return vectors

    def fits(self, text):
        return len(self.tokenizer(text, verbose=False).input_ids) <= TEXT_TOKENS


def tune(text_side, examples, valid, items, of_item, part, steps, eval_every, lr, batch_size, seed):
    """Fine-tune the text side in place on the turns `examples`; returns the log. items: (N, D), the audio vectors, fixed."""
    model = text_side.model

    def batch_loss(step):
        queries, rows, hits = draw_batch(step, examples, TRAINED, None, of_item, text_side.fits, batch_size, seed)
        heard = torch.from_numpy(items[rows]).to(model.device)
        return info_nce(text_side.encode_batch(queries), heard, hits.to(model.device))

    def valid_mrr():
        vectors = embed_turns(valid, TRAINED[:1], None, items, of_item, text_side)
        return turns.mrr(score_turns(vectors[TRAINED[0]], items, of_item), valid, seed)

    learnt = torch.nn.ModuleList([model.text_model, model.text_projection])
    return fit(learnt, batch_loss, valid_mrr, part, steps, eval_every, lr, seed)


# ---------------------------------------------------------------- main

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Rank all tracks by CLAP's vectors of their audio and of the query.")
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--clap-model", default=None, help="a folder with a CLAP model, or a Hugging Face id such as laion/larger_clap_music")
    add("--random-weights", action="store_true", help="a small model that knows nothing instead, to try the script: all "
        "output goes to predictions_trial/")
    add("--tune", action="store_true", help="also fine-tune the text side: the system clap-tuned")
    add("--steps", type=int, default=1000, help="of fine-tuning (default 1000)")
    add("--lr", type=float, default=2e-5, help="peak learning rate (default 2e-5)")
    add("--batch-size", type=int, default=32, help="turns a step of fine-tuning (default 32)")
    add("--eval-every", type=int, default=100, help="steps between validations; the run can go on from there (default 100)")
    add("--limit", type=int, default=0, help="training dialogues used; 0 (default) = all")
    add("--workers", type=int, default=os.cpu_count(), help="processes that read audio (default: as many as cores)")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of the batches and of the order of equal scores (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with what is half done (default); "
        "--no-resume starts afresh, with the audio too")
    args = parser.parse_args()
    if bool(args.clap_model) == args.random_weights:
        raise SystemExit("one of --clap-model and --random-weights is needed. --clap-model takes the folder of a CLAP model, or "
                         "its Hugging Face id; get one with: hf download laion/larger_clap_music --local-dir larger_clap_music")
    for name, least in (("steps", 1), ("batch_size", 2), ("eval_every", 1), ("workers", 1)):
        if getattr(args, name) < least:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: a number from {least} on is expected")
    return args


def main():
    args = parse_args()
    torch.set_flush_denormal(True)  # tiny numbers are slow on a CPU
    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    of_split = turns.load_turns(args.data_dir, row_of)
    where, trial = "", ""  # a trial has files and records of its own
    if args.random_weights:
        where, trial = "predictions_trial/", "trial_"
        print(f"random weights: what follows means nothing. It goes to {args.data_dir}/{where}, not to predictions/")
        model, tokenizer, extractor = random_clap([turn.query for turn in of_split["valid"]], args.seed, args.device)
    else:
        model, tokenizer, extractor = load_clap(args.clap_model, args.device)
    text_side = TextSide(model, tokenizer)
    out = args.data_dir / where

    audio_files = [f"{where}embeddings/clap.npy", f"{where}embeddings/clap_failed.jsonl"]
    run, state = runs.begin_run(args.data_dir, f"{trial}clap_audio", args, [*data.catalogue_files(args.data_dir)], audio_files,
                                args.resume, record=False, ignore=(*PLACE, *TUNING, *["seed"] * (not trial)))
    if state != "done":
        progress = out / "embeddings" / "clap.progress.jsonl"
        if state == "new":
            progress.unlink(missing_ok=True)
        runs.record_run(run)
        progress.parent.mkdir(parents=True, exist_ok=True)
        if not is_finished(progress.parent, "clap", len(tracks)):
            write_audio(progress.parent, tracks, args.data_dir, model, extractor, args.workers)
        runs.finish_run(run)
        progress.unlink()
    items = np.array(data.load_npy(out / "embeddings" / "clap.npy", "python baselines/clap.py", len(tracks), np.float32))
    if np.isnan(items).all():
        raise SystemExit(f"{args.data_dir}: no track has audio that can be read ({out}/embeddings/clap_failed.jsonl says why not), so "
                         f"CLAP has nothing to rank. Give audio to 00_prepare_data.py mpd with --audio-dir")
    of_item, part = np.arange(len(tracks)), out / "clap.part"

    for name in ("clap", "clap-tuned")[:1 + args.tune]:
        tuned = name == "clap-tuned"
        reads = [*data.catalogue_files(args.data_dir), audio_files[0], *turns.dialogue_files(*["train"] * tuned, "valid", "test")]
        writes = [where + file for file in (*turns.prediction_files(name), f"results/{name}_forms.csv")]
        writes += [f"{where}clap_model/{file}" for file in ("model.safetensors", "config.json", "tokenizer.json")] * tuned
        run, state = runs.begin_run(args.data_dir, trial + name, args, reads, writes, args.resume, record=False,
                                    ignore=(*PLACE, *TUNING * (not tuned)))
        if state == "done":
            print(f"{name}: already done, nothing changed")
            continue
        if tuned:
            examples = load_examples(args.data_dir, row_of, ~np.isnan(items[:, 0]), args.limit)
            if state == "new":
                shutil.rmtree(part, ignore_errors=True)
        runs.record_run(run)  # all input has proved good, and what an older run left half done is gone
        facts = {}
        if tuned:
            facts["log"] = tune(text_side, examples, of_split["valid"], items, of_item, part, args.steps, args.eval_every,
                                args.lr, args.batch_size, args.seed)
            save_folder(model, [tokenizer, extractor], part, out / "clap_model")
        vectors = {split: embed_turns(found, HISTORIES, None, items, of_item, text_side) for split, found in of_split.items()}
        chosen = rank_system(out, name, of_split, vectors, items, of_item, track_ids, args.seed)
        runs.finish_run(run, chosen_on_valid=chosen, **facts)
        print(f"Chosen on valid: {chosen['history']}. Wrote {args.data_dir}/{writes[1]}, {writes[0]} and {writes[2]}")
        if tuned:
            shutil.rmtree(part)
    print("Next: a checkpoint, --clap-model" if trial else f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
