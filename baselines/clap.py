"""Baseline: CLAP hears the tracks and reads the query (the paper's section 5; Wu et al. 2023).

A track is its audio: the mean of the vectors of its windows of 10 s. A query is a text in one of
HISTORIES, chosen on valid; tracks that were played count by their audio. A track's score is the
cosine. Tracks without readable audio come last, in an order drawn for each turn. The system `clap`
is the checkpoint as it is; with --tune there is also `clap-tuned`, whose text side is fine-tuned on
the training dialogues as in dense.py.

--random-weights tries the script without a checkpoint: a small model that knows nothing, whose
output goes to predictions_trial/, where 06_evaluate.py does not look. A killed run goes on from its
last chunk of tracks, or its last validation, when the same command is given again.

Reads   tracks.jsonl, annotations/, audio files, dialogues_{train,valid,test}.jsonl
Writes  predictions/clap.jsonl, predictions/clap-tuned.jsonl (test), the same in predictions_valid/
        (valid), results/clap_forms.csv, results/clap-tuned_forms.csv, clap_model/,
        embeddings/clap.npy (N, D) float32, NaN without audio, embeddings/clap_failed.jsonl (audio
        that could not be used, and why); meanwhile clap.part/
Trial   python baselines/clap.py --random-weights --tune --steps 4 --eval-every 2
Full    hf download laion/larger_clap_music --local-dir larger_clap_music
        python baselines/clap.py --data-dir data/mpd --clap-model larger_clap_music --tune \
            --workers 16    (not run: the checkpoint could not be had where this was written)
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import two_towers
from common import data, runs, turns
from steps.extract_embeddings.audio import AudioEncoder, embed_audio_files
from steps.extract_embeddings.chunks import is_finished
from steps.extract_embeddings.clap import embed_windows, load_clap, mean_of_windows, mel_windows

HISTORIES = two_towers.HISTORIES[:-1]  # without "turns joined", which has the tracks as text
TRAINED = ("queries joined", "last query")  # the forms that clap-tuned learns on
TEXT_TOKENS = 77  # the longest text that CLAP has learnt from
CHUNK = 64        # tracks per chunk; a killed run goes on from the last whole one


def random_clap(texts, seed, device):
    """Like load_clap: a very small CLAP with random weights, its words learnt from `texts`."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    from steps.train.base_models import tiny_tokenizer
    tokenizer = tiny_tokenizer(texts)
    torch.manual_seed(seed)
    # initializer_factor: with smaller weights all texts would be nearly the same
    text_config = dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
                       num_attention_heads=2, intermediate_size=64, max_position_embeddings=128,
                       pad_token_id=tokenizer.pad_token_id, initializer_factor=10.0)
    audio_config = dict(patch_embeds_hidden_size=16, hidden_size=32, depths=(1, 1),
                        num_attention_heads=(2, 2), num_hidden_layers=2)
    config = ClapConfig(text_config=text_config, audio_config=audio_config, projection_dim=16)
    extractor = ClapFeatureExtractor(truncation="rand_trunc")
    return ClapModel(config).to(device).eval(), tokenizer, extractor


class TextSide(NamedTuple):
    """CLAP as an encoder of queries, see two_towers.embed_turns."""
    model: torch.nn.Module
    tokenizer: object

    def query_batch(self, texts):
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
                vectors[rows] = self.query_batch([texts[i] for i in rows]).cpu().numpy()
        return vectors

    def fits(self, text):
        return len(self.tokenizer(text, verbose=False).input_ids) <= TEXT_TOKENS


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


def audio_vectors(args, trial, tracks, model, extractor):
    """The tracks' audio vectors, (N, D) float32, NaN without audio; made if they are not there."""
    folder = args.data_dir / trial / "embeddings"
    progress = folder / "clap.progress.jsonl"
    ignore = (*two_towers.NO_EFFECT, *two_towers.TUNING)
    if not trial:
        ignore += ("seed",)  # it makes the random weights, and nothing else
    run, state = runs.begin_run(
        args.data_dir, "trial_clap_audio" if trial else "clap_audio", args,
        data.catalogue_files(args.data_dir),
        [f"{trial}embeddings/{file}" for file in ("clap.npy", "clap_failed.jsonl")],
        args.resume, record=False, ignore=ignore)
    if state == "new":
        progress.unlink(missing_ok=True)
    if state != "done":
        runs.record_run(run)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_finished(folder, "clap", len(tracks)):
            write_audio(folder, tracks, args.data_dir, model, extractor, args.workers)
        runs.finish_run(run)
        progress.unlink()
    items = np.array(data.load_npy(folder / "clap.npy", "python baselines/clap.py", len(tracks)))
    if np.isnan(items).all():
        raise SystemExit(f"{args.data_dir}: no track has audio that can be read ({folder}/"
                         f"clap_failed.jsonl says why). Give 00_prepare_data.py mpd --audio-dir")
    return items


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--clap-model",
        help="a folder with a CLAP model, or a Hugging Face id such as laion/larger_clap_music")
    add("--random-weights", action="store_true", help="a small model that knows nothing instead, "
        "to try the script: all output goes to predictions_trial/")
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
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    turns_of = turns.load_turns(args.data_dir, row_of)

    trial = "predictions_trial/" if args.random_weights else ""  # its records are its own too
    if trial:
        print(f"random weights: what follows means nothing. It goes to {args.data_dir}/{trial}")
        queries = [turn.query for turn in turns_of["valid"]]
        model, tokenizer, extractor = random_clap(queries, args.seed, args.device)
    else:
        model, tokenizer, extractor = load_clap(args.clap_model, args.device)
    items = audio_vectors(args, trial, tracks, model, extractor)
    examples = None
    if args.tune:
        examples = two_towers.load_examples(args.data_dir, row_of, ~np.isnan(items[:, 0]))

    towers = two_towers.Towers(
        TextSide(model, tokenizer), HISTORIES, TRAINED, None, np.arange(len(tracks)),
        encode_items=lambda: items,
        item_batch=lambda rows: torch.from_numpy(items[rows]).to(model.device),
        model=torch.nn.ModuleList([model.text_model, model.text_projection]),
        saved=[model, tokenizer, extractor])
    two_towers.run_systems(args, "clap", examples, lambda: towers, turns_of, row_of,
                           [f"{trial}embeddings/clap.npy"], trial)
    print("Next: a checkpoint, --clap-model" if trial else
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
