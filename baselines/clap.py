"""Baseline: CLAP hears the tracks and reads the query (the paper's section 5; Wu et al. 2023).

A track is its audio: the mean of the vectors of its windows of 10 s. (transformers' feature
extractor would crop longer ones at random.) A query is a text in one of HISTORIES, chosen on valid;
tracks that were played count by their audio. A track's score is the cosine. Tracks without readable
audio come last, in an order drawn for each turn.

    clap         the checkpoint as it is (zero-shot)
    clap-tuned   --tune: the text side is fine-tuned on the training dialogues as in dense.py

No checkpoint is downloaded unless --clap-model names one. --random-weights tries the script without
one: a small model that knows nothing, whose output goes to predictions_trial/, where 06_evaluate.py
does not look. A killed run goes on from its last chunk of tracks, or its last validation, when the
same command is given again.

Reads   tracks.jsonl, annotations/, audio files, dialogues_{train,valid,test}.jsonl
Writes  predictions/clap.jsonl, predictions/clap-tuned.jsonl (test), the same in predictions_valid/
        (valid), results/clap_forms.csv, results/clap-tuned_forms.csv, clap_model/,
        embeddings/clap.npy (N, D) float32, NaN without audio, embeddings/clap_failed.jsonl (audio
        that could not be used, and why); meanwhile clap.part/

Trial   python baselines/clap.py --random-weights --tune --steps 4 --eval-every 2
Full    hf download laion/larger_clap_music --local-dir larger_clap_music
        python baselines/clap.py --data-dir data/mpd --clap-model larger_clap_music --tune \
            --workers 16
The full command was not run: the checkpoint could not be had where this was written.
"""

import argparse
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import two_towers
from baselines.two_towers import draw_batch, embed_turns, fit, info_nce, score_turns
from common import data, runs, turns
from steps.extract_embeddings.audio import AudioEncoder, embed_audio_files
from steps.extract_embeddings.chunks import is_finished
from steps.extract_embeddings.clap import embed_windows, load_clap, mean_of_windows, mel_windows

HISTORIES = two_towers.HISTORIES[:-1]  # without "turns joined", which has the tracks as text
TRAINED = ("queries joined", "last query")  # the forms that clap-tuned learns on
TEXT_TOKENS = 77  # the longest text that CLAP has learnt from
CHUNK = 64        # tracks per chunk; a killed run goes on from the last whole one


# ---------------------------------------------------------------- the model

def random_clap(texts, seed, device):
    """Like load_clap: a very small CLAP with random weights, its words learnt from `texts`."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    from steps.train.base_models import tiny_tokenizer
    tokenizer = tiny_tokenizer(texts)
    torch.manual_seed(seed)
    text_config = dict(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
        initializer_factor=10.0)  # with smaller weights all texts would be nearly the same
    audio_config = dict(patch_embeds_hidden_size=16, hidden_size=32, depths=(1, 1),
                        num_attention_heads=(2, 2), num_hidden_layers=2)
    config = ClapConfig(text_config=text_config, audio_config=audio_config, projection_dim=16)
    extractor = ClapFeatureExtractor(truncation="rand_trunc")
    return ClapModel(config).to(device).eval(), tokenizer, extractor


class TextSide(NamedTuple):
    """CLAP as an encoder of queries, see two_towers.embed_turns."""
    model: torch.nn.Module
    tokenizer: object

    def encode_batch(self, texts):
        """Texts -> (B, D), length 1, with a gradient."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=TEXT_TOKENS,
                                return_tensors="pt").to(self.model.device)
        features = self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        return features.pooler_output

    def encode_queries(self, texts, size=64):
        """Texts -> (n, D) float32, length 1. Texts of similar length share a batch."""
        vectors = np.empty((len(texts), self.model.config.projection_dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for first in range(0, len(order), size):
            rows = order[first:first + size]
            with torch.inference_mode():
                vectors[rows] = self.encode_batch([texts[i] for i in rows]).cpu().numpy()
        return vectors

    def fits(self, text):
        return len(self.tokenizer(text, verbose=False).input_ids) <= TEXT_TOKENS


# ---------------------------------------------------------------- audio

def write_audio(folder, tracks, data_dir, model, extractor, workers):
    """Write clap.npy and clap_failed.jsonl, chunk by chunk, so that a killed run can go on."""
    def encode(sounds):
        return np.stack([mean_of_windows(embed_windows(model, windows)) for windows in sounds])

    read = partial(mel_windows, extractor=extractor)
    encoder = AudioEncoder(read, encode, model.config.projection_dim, (), CHUNK)
    unfinished, failed = embed_audio_files(folder, "clap", tracks, data_dir, encoder, workers)
    data.write_jsonl(folder / "clap_failed.jsonl", failed)
    os.replace(unfinished, folder / "clap.npy")
    print(f"clap: {sum(not track['audio_path'] for track in tracks)} tracks have no audio_path; "
          f"{len(failed)} files could not be used")


def audio_vectors(args, where, tracks, model, extractor):
    """The tracks' audio vectors, (N, D) float32, NaN without audio; made if they are not there."""
    files = [f"{where}embeddings/clap.npy", f"{where}embeddings/clap_failed.jsonl"]
    ignore = (*two_towers.NO_EFFECT, *two_towers.TUNING)
    if not where:
        ignore += ("seed",)  # it makes the random weights, and nothing else
    run, state = runs.begin_run(args.data_dir, "trial_clap_audio" if where else "clap_audio", args,
                                data.catalogue_files(args.data_dir), files, args.resume,
                                record=False, ignore=ignore)
    folder = args.data_dir / where / "embeddings"
    if state != "done":
        progress = folder / "clap.progress.jsonl"
        if state == "new":
            progress.unlink(missing_ok=True)
        runs.record_run(run)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_finished(folder, "clap", len(tracks)):
            write_audio(folder, tracks, args.data_dir, model, extractor, args.workers)
        runs.finish_run(run)
        progress.unlink()
    command = "python baselines/clap.py"
    items = np.array(data.load_npy(folder / "clap.npy", command, len(tracks), np.float32))
    if np.isnan(items).all():
        raise SystemExit(f"{args.data_dir}: no track has audio that can be read "
                         f"({folder}/clap_failed.jsonl says why not), so CLAP has nothing to rank. "
                         f"Give audio to 00_prepare_data.py mpd with --audio-dir")
    return items


# ---------------------------------------------------------------- fine-tuning

def tune(text_side, examples, valid_turns, items, item_of_track, work_dir, steps, eval_every, lr,
         batch_size, seed):
    """Fine-tune the text side in place on the turns `examples`; returns the log.

    items: the audio vectors, which stay as they are, (N, D) float32.
    """
    model = text_side.model

    def batch_loss(step):
        queries, rows, hits = draw_batch(step, examples, TRAINED, None, item_of_track,
                                         text_side.fits, batch_size, seed)
        heard = torch.from_numpy(items[rows]).to(model.device)
        return info_nce(text_side.encode_batch(queries), heard, hits.to(model.device))

    def valid_mrr():
        vectors = embed_turns(valid_turns, TRAINED[:1], None, items, item_of_track, text_side)
        return turns.mrr(score_turns(vectors[TRAINED[0]], items, item_of_track), valid_turns, seed)

    learnt = torch.nn.ModuleList([model.text_model, model.text_projection])
    return fit(learnt, batch_loss, valid_mrr, work_dir, steps, eval_every, lr, seed)


# ---------------------------------------------------------------- main

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--clap-model", default=None,
        help="a folder with a CLAP model, or a Hugging Face id such as laion/larger_clap_music")
    add("--random-weights", action="store_true",
        help="a small model that knows nothing instead, to try the script: all output goes to "
             "predictions_trial/")
    add("--tune", action="store_true", help="also fine-tune the text side: the system clap-tuned")
    add("--workers", type=int, default=os.cpu_count(),
        help="processes that read audio (default: as many as cores)")
    args = two_towers.parse_flags(parser, steps=1000, lr=2e-5, eval_every=100)
    if bool(args.clap_model) == args.random_weights:
        raise SystemExit("one of --clap-model and --random-weights is needed. --clap-model takes "
                         "the folder of a CLAP model, or its Hugging Face id; get one with: hf "
                         "download laion/larger_clap_music --local-dir larger_clap_music")
    return args


def main():
    args = parse_args()
    torch.set_flush_denormal(True)  # tiny numbers are slow on a CPU
    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    turns_by_split = turns.load_turns(args.data_dir, row_of)

    where = ""
    if args.random_weights:
        where = "predictions_trial/"  # a trial has files and records of its own
        print(f"random weights: what follows means nothing. It goes to {args.data_dir}/{where}, "
              f"not to predictions/")
        queries = [turn.query for turn in turns_by_split["valid"]]
        model, tokenizer, extractor = random_clap(queries, args.seed, args.device)
    else:
        model, tokenizer, extractor = load_clap(args.clap_model, args.device)
    text_side = TextSide(model, tokenizer)
    out = args.data_dir / where
    items = audio_vectors(args, where, tracks, model, extractor)
    item_of_track = np.arange(len(tracks))
    systems = ["clap"]
    if args.tune:
        systems.append("clap-tuned")
        usable = ~np.isnan(items[:, 0])
        examples = two_towers.load_examples(args.data_dir, row_of, usable, args.limit)

    work_dir = out / "clap.part"
    for name in systems:
        run = two_towers.begin_system(args, name, work_dir, [f"{where}embeddings/clap.npy"], where)
        if run is None:
            continue
        facts = {}
        if name == "clap-tuned":
            facts["log"] = tune(text_side, examples, turns_by_split["valid"], items, item_of_track,
                                work_dir, args.steps, args.eval_every, args.lr, args.batch_size,
                                args.seed)
            two_towers.save_folder(model, [tokenizer, extractor], work_dir, out / "clap_model")
        vectors = {split: embed_turns(turn_list, HISTORIES, None, items, item_of_track, text_side)
                   for split, turn_list in turns_by_split.items()}
        chosen = two_towers.rank_system(out, name, turns_by_split, vectors, items, item_of_track,
                                        track_ids, args.seed)
        runs.finish_run(run, chosen_on_valid=chosen, **facts)
        if name == "clap-tuned":
            shutil.rmtree(work_dir)
    print("Next: a checkpoint, --clap-model" if where else
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
