"""Prediction speed: turns of a dialogue read together (05_infer.py) against model.generate.

    python benchmarks/predict_throughput.py                  (the demo's model, two cores: a minute)

Both predict five music tokens greedily, and the 1,000 best tracks by weighted overlap; no response.
05_infer.py reads what the turns of a dialogue have in common once; model.generate reads each prompt
anew. The tokens of both are the same.
"""

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path
from timeit import timeit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common import data, tokens
from common.flags import add_shared, check_ranges
from steps.infer.generation import PromptCache, stop_ids

infer = importlib.import_module("05_infer")


def long_dialogues(path, row_of, n, n_turns):
    """n lists of n_turns turns, made of the dialogues of a file end to end."""
    turns = [turn for dialogue in data.load_dialogues(path, row_of) for turn in dialogue["turns"]]
    return [[turns[(i * n_turns + t) % len(turns)] for t in range(n_turns)] for i in range(n)]


def ours(model, dialogue_tokenizer, prompts):
    cache = PromptCache(model, prompts)
    return infer.sample_codes(cache, dialogue_tokenizer, [None] * len(prompts),
                              infer.Settings(temperature=0))


def turn_by_turn(model, dialogue_tokenizer, prompts):
    """transformers' generate, left-padded, in batches."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, -len(prompt):] = torch.as_tensor(prompt).long()
        mask[row, -len(prompt):] = 1
    end = dialogue_tokenizer.vocabulary.end
    made = model.generate(ids, attention_mask=mask, max_new_tokens=infer.BLOCK_LENGTH,
                          do_sample=False, pad_token_id=0,
                          eos_token_id=[end, *stop_ids(dialogue_tokenizer)])
    blocks = made[:, longest:].tolist()
    blocks = [block[:block.index(end) + 1] if end in block else block for block in blocks]
    return [tokens.ids_to_codes(dialogue_tokenizer.vocabulary, block) for block in blocks]


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add_shared(parser, "data-dir", "device")
    add("--dialogues", type=int, default=16, help="dialogues (default 16)")
    add("--turns", type=int, default=10, help="turns per dialogue (default 10)")
    add("--batch-size", type=int, default=40, help="turns at a time (default 40)")
    add("--rounds", type=int, default=5, help="times that both are measured (default 5)")
    args = parser.parse_args()
    check_ranges(args, dialogues=1, turns=1, batch_size=1, rounds=1)
    talkplay = infer.load(args.data_dir, args.device)
    dialogues = long_dialogues(args.data_dir / "dialogues_valid.jsonl", talkplay.row_of,
                               args.dialogues, args.turns)

    def predict(generate):
        prompts = [infer.prompt_of(talkplay.dialogue_tokenizer, dialogue[:t], talkplay.codes_of,
                                   context=4096)
                   for dialogue in dialogues for t in range(1, args.turns + 1)]
        all_codes = []
        for i in range(0, len(prompts), args.batch_size):
            all_codes += generate(*talkplay[:2], prompts[i:i + args.batch_size])
        for codes in all_codes:
            infer.rank_by_overlap(talkplay.index, codes, np.random.default_rng(0))
        return all_codes

    systems = {"05_infer.py": ours, "model.generate": turn_by_turn}
    n_turns = args.dialogues * args.turns
    speeds = np.zeros((len(systems), args.rounds))  # turns per second
    with torch.inference_mode():
        first, second = (predict(generate) for generate in systems.values())  # also warms up
        for measured in range(args.rounds):
            for system, generate in enumerate(systems.values()):
                speeds[system, measured] = n_turns / timeit(partial(predict, generate), number=1)
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    print(f"{n_turns} turns; {same:.1%} have the same five tokens by both")
    for name, speed in zip(systems, speeds, strict=True):
        print(f"{name:15} {np.median(speed):7.1f} turns/s ({speed.min():.1f} to {speed.max():.1f});"
              f"  05_infer.py / this: {np.median(speeds[0] / speed):.2f}")


if __name__ == "__main__":
    main()
