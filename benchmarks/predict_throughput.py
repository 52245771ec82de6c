"""Prediction speed: turns of a dialogue read together (05_infer.py) against model.generate turn by turn, in one run.

    python benchmarks/predict_throughput.py                         (tiny Llama, random weights, two cores: a minute)

Both predict every turn of --dialogues dialogues of --turns turns: five music tokens, greedily, and the 1,000 best tracks by
weighted overlap; no responses. Both take --batch-size turns at a time. 05_infer.py reads what the turns of a dialogue have in
common once; model.generate reads each prompt anew. The tokens of both are the same.
"""

import argparse
import importlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common import data, retrieval, tokens
from common.process import resolve_device
from common.metrics import DEPTH
from steps.train.base_models import tiny_llama, tiny_tokenizer
from steps.infer.generation import PromptCache

infer, train = importlib.import_module("05_infer"), importlib.import_module("04_train")


def long_dialogues(data_dir, row_of, n, n_turns):
    """n dialogues of n_turns turns, made of the validation dialogues end to end."""
    turns = [turn for d in data.load_dialogues(data_dir / "dialogues_valid.jsonl", row_of) for turn in d["turns"]]
    return [{"dialogue_id": str(i), "turns": [turns[(i * n_turns + t) % len(turns)] for t in range(n_turns)]} for i in range(n)]


def ours(model, dialogue_tokenizer, prompts):
    reading = PromptCache(model, prompts)
    return infer.generate_codes(reading, dialogue_tokenizer, [None] * len(prompts), temperature=0)


def turn_by_turn(model, dialogue_tokenizer, prompts):
    """transformers' generate, left-padded, in batches."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt):], mask[row, longest - len(prompt):] = torch.as_tensor(prompt).long(), 1
    made = model.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0,
                          eos_token_id=[dialogue_tokenizer.vocabulary.end, *infer.stop_ids(dialogue_tokenizer)])[:, longest:].tolist()
    blocks = [block[:block.index(dialogue_tokenizer.vocabulary.end) + 1] if dialogue_tokenizer.vocabulary.end in block else block for block in made]
    return [tokens.ids_to_codes(dialogue_tokenizer.vocabulary, block) for block in blocks]


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--dialogues", type=int, default=16, help="dialogues (default 16)")
    parser.add_argument("--turns", type=int, default=10, help="turns a dialogue (default 10)")
    parser.add_argument("--batch-size", type=int, default=40, help="turns at a time (default 40)")
    parser.add_argument("--rounds", type=int, default=5, help="times that both are measured (default 5)")
    parser.add_argument("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    tracks = data.load_tracks(args.data_dir)
    codes = data.load_codes(args.data_dir, len(tracks))
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    codes_of = {track_id: codes[row] for track_id, row in row_of.items()}
    dialogues = long_dialogues(args.data_dir, row_of, args.dialogues, args.turns)
    if (args.data_dir / "model" / "config.json").is_file():
        model, dialogue_tokenizer = infer.load_model(args.data_dir / "model", codes, args.device)
    else:
        tokenizer = tiny_tokenizer([turn["query"] for d in dialogues for turn in d["turns"]])
        model = tiny_llama(tokenizer)
        train.expand_vocabulary(model, tokenizer, int(codes.max()) + 1)
        model, dialogue_tokenizer = model.to(args.device).eval(), tokens.DialogueTokenizer(tokenizer)
    index = retrieval.build_index(codes)
    batches = [(d, t) for d in dialogues for t in range(1, args.turns + 1)]
    batches = [batches[i:i + args.batch_size] for i in range(0, len(batches), args.batch_size)]

    def predict(generate):
        found = []
        for batch in batches:
            prompts = [infer.prompt_of(dialogue_tokenizer, d["turns"][:t], codes_of, 4096) for d, t in batch]
            sampled = generate(model, dialogue_tokenizer, prompts)
            for c in sampled:
                retrieval.search(index, c or [-1] * 5, DEPTH, np.random.default_rng(0))
            found += sampled
        return found

    systems = {"05_infer.py": ours, "model.generate": turn_by_turn}
    speeds, found = {name: [] for name in systems}, {}
    n = args.dialogues * args.turns
    with torch.inference_mode():
        for name, generate in systems.items():  # once before the clock runs
            found[name] = predict(generate)
        for _ in range(args.rounds):
            for name, generate in systems.items():
                begin = time.perf_counter()
                predict(generate)
                speeds[name].append(n / (time.perf_counter() - begin))
    same = np.mean([a == b for a, b in zip(*found.values())])
    print(f"{n} turns; {same:.1%} have the same five tokens by both")
    for name, speed in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds["05_infer.py"], speed))
        print(f"{name:15} {statistics.median(speed):7.1f} turns/s ({min(speed):.1f} to {max(speed):.1f});  05_infer.py / this: {ratio:.2f}")


if __name__ == "__main__":
    main()
