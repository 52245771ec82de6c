"""Training speed: 04_train.py's step against transformers' Trainer, with padding and with packing, in one run.

    pip install accelerate                                          (the Trainer needs it; nothing else here does)
    python benchmarks/train_throughput.py                           (tiny Llama on two cores: a minute)
    python benchmarks/train_throughput.py --size 1b --context 1024 --batch-size 16 --compile     (one GPU; random weights)

Same model, same dialogues (data/demo), same optimiser, precision and tokens a step, as nearly as each allows. The
three take turns, --rounds times; the first steps of each round are not counted. Prints real tokens (no padding) a
second, the ratios, the peak memory and, for the 1B on a GPU, the share of --peak-tflops (MFU) at 7.82 GFLOP a token.
"""

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from transformers import (DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments,
                          default_data_collator)

from common import tokens
from common.process import resolve_device
from steps.train import packing

train = importlib.import_module("04_train")
GFLOP_A_TOKEN = {"1b": 7.82}  # forward and backward at context 1024: 6 x 1,235.7M + attention
WARM = 3                      # steps of each round that are not counted
LLAMA_1B = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
                head_dim=64, rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=True,
                rope_parameters=dict(rope_type="llama3", rope_theta=5e5, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                     original_max_position_embeddings=8192))


class Clock:
    """Real tokens and time of each step, the first WARM left out."""

    def __init__(self, device):
        self.device, self.counts, self.times = device, [], []

    def step(self):
        if "cuda" in self.device:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def tokens_per_second(self):
        return sum(self.counts[WARM:len(self.times)]) / (self.times[-1] - self.times[WARM - 1])


def ours(make_model, packed, args, recipe):
    model, clock = train.LossModel(make_model()), Clock(args.device)
    if args.compile:
        model.compile()
    optimizer = train.make_optimizer(model, recipe)
    order = np.random.default_rng(0).permutation(len(packed.bins))
    labels_of = packed.count_labels()
    for step in range(args.steps + WARM):
        chosen = order[step * args.batch_size:(step + 1) * args.batch_size]
        n_labels = int(labels_of[chosen].sum())
        batch = packed.batch(chosen, args.device)
        train.accumulate(model, [(*batch[:3], True)], n_labels, 1, args.device)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.counts.append(int(sum(packed.pieces.lengths()[packed.bins[b]].sum() for b in chosen)))
        clock.step()
    return clock


def trainer(make_model, packed, args, recipe, flatten):
    """transformers' Trainer on the same pieces; each step has about as many tokens as ours."""
    starts, clock = packed.pieces.starts, Clock(args.device)
    pieces = [{"input_ids": packed.pieces.ids[a:b].tolist()} for a, b in zip(starts[:-1], starts[1:])]
    per_step = max(1, round(args.batch_size * args.context / np.mean(packed.pieces.lengths())))
    pack = DataCollatorWithFlattening(return_position_ids=True)

    def collate(rows):
        clock.counts.append(sum(len(row["input_ids"]) for row in rows))
        if flatten:
            return pack(rows)
        longest = max(len(row["input_ids"]) for row in rows)
        return default_data_collator([{
            "input_ids": row["input_ids"] + [packed.pad] * (longest - len(row["input_ids"])),
            "attention_mask": [1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])),
            "labels": row["input_ids"] + [-100] * (longest - len(row["input_ids"]))} for row in rows])

    class Tick(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.step()

    model = make_model()
    model.config.use_cache = False  # with a cache, packed dialogues would see each other
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=args.steps + WARM, per_device_train_batch_size=per_step, learning_rate=recipe["lr"],
            weight_decay=recipe["weight_decay"], max_grad_norm=1.0, optim="adamw_torch_fused", bf16="cuda" in args.device,
            use_cpu="cuda" not in args.device, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            torch_compile=args.compile, remove_unused_columns=False, dataloader_num_workers=0)
        Trainer(model, arguments, data_collator=collate, train_dataset=pieces, callbacks=[Tick()]).train()
    return clock


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--size", choices=("tiny", "1b"), default="tiny", help="tiny (the demo's, default), or Llama-3.2-1B's shape, random weights")
    parser.add_argument("--context", type=int, default=512, help="tokens a packed sequence (default 512)")
    parser.add_argument("--batch-size", type=int, default=4, help="packed sequences a step (default 4)")
    parser.add_argument("--steps", type=int, default=20, help="counted steps a round (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each way (default 3)")
    parser.add_argument("--indexing-repeats", type=int, default=None, help="as in 04_train.py (default: the recipe's); 0 = dialogues only")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU, dense bf16 (default 989: H100, H200)")
    parser.add_argument("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    args = parser.parse_args()
    torch.set_flush_denormal(True)

    k, tracks, codes_of, dialogues, _ = train.load_data(args.data_dir, 0)
    _, tokenizer = train.load_base("tiny", dialogues, 0)

    def make_model():
        tiny = train.tiny_llama(tokenizer)
        model = tiny if args.size == "tiny" else LlamaForCausalLM(LlamaConfig(vocab_size=128256, **LLAMA_1B))
        model.resize_token_embeddings(max(model.config.vocab_size, len(tokenizer)) if args.size == "tiny" else 128256 + 5 * k + 2,
                                      mean_resizing=False)
        return model.to(args.device).train()

    tokens.add_music_tokens(tokenizer, k)
    recipe = train.RECIPES["tiny" if args.size == "tiny" else "paper"]
    dialogues += packing.indexing_examples(tracks, codes_of, recipe["indexing_repeats"] if args.indexing_repeats is None else args.indexing_repeats, packing.answers_by_track(dialogues))
    pieces, _, _ = packing.encode_all(tokens.DialogueTokenizer(tokenizer), dialogues, codes_of, args.context)
    packed = packing.Packed(pieces, packing.pack(pieces.lengths(), args.context), args.context, tokenizer.pad_token_id)
    systems = {"04_train.py": lambda: ours(make_model, packed, args, recipe),
               "Trainer, padded": lambda: trainer(make_model, packed, args, recipe, flatten=False),
               "Trainer, packed": lambda: trainer(make_model, packed, args, recipe, flatten=True)}
    speeds, memory = {name: [] for name in systems}, {}
    for _ in range(args.rounds):
        for name, run in systems.items():
            if "cuda" in args.device:
                torch.cuda.reset_peak_memory_stats()
            speeds[name].append(run().tokens_per_second())
            if "cuda" in args.device:
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
                torch.cuda.empty_cache()
    first = speeds["04_train.py"]
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(first, found))
        line = f"{name:16}  {statistics.median(found):9,.0f} real tokens/s ({min(found):,.0f} to {max(found):,.0f});  04_train.py / this: {ratio:.2f}"
        if name in memory:
            line += f";  peak {memory[name]:.1f} GiB"
            if args.size in GFLOP_A_TOKEN:
                line += f";  MFU {statistics.median(found) * GFLOP_A_TOKEN[args.size] / args.peak_tflops / 1e3:.1%}"
        print(line)


if __name__ == "__main__":
    main()
