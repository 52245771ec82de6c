"""Training speed: 04_train.py's step against transformers' Trainer, padded and packed.

    pip install accelerate                       (the Trainer needs it; nothing else here does)
    python benchmarks/train_throughput.py        (tiny Llama on two cores: a minute)
    python benchmarks/train_throughput.py --size 1b --context 1024 --batch-size 16 --compile
                                                 (one GPU; random weights)

Same model, dialogues, optimiser, precision and tokens per step, as nearly as each allows. The three
take turns, --rounds times; the first steps of each round are not counted. Prints real tokens (no
padding) per second, the ratios, the peak memory and, for the 1B on a GPU, the share of
--peak-tflops (MFU) at 7.82 GFLOP per token.
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
import transformers

from common import flags, tokens
from steps.train import packing
from steps.train.base_models import load_base
from steps.train.indexing_examples import indexing_examples, standalone_answers
from steps.train.parallel import accumulate

train = importlib.import_module("04_train")
GFLOP_PER_TOKEN = 7.82  # the 1B, forward and backward at context 1024: 6 x 1,235.7M + attention
WARM = 3                # steps of each round that are not counted
LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0,
                        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192}}


def now(device):
    """Seconds, when the device has done all that it was given."""
    if "cuda" in device:
        torch.cuda.synchronize()
    return time.perf_counter()


def run_ours(lm, packed, recipe, args):
    """--steps steps of 04_train.py: (real tokens of each, the time at its end)."""
    model = train.LossModel(lm)
    if args.compile:
        model.compile()
    optimizer = train.make_optimizer(model, recipe["lr"], recipe["weight_decay"])
    order = np.random.default_rng(0).permutation(len(packed.sequences))
    labels_per_sequence = packed.count_labels()
    lengths = packed.segments.lengths()
    counts, times = [], []
    for step in range(args.steps + WARM):
        chosen = order[step * args.batch_size:(step + 1) * args.batch_size]
        n_labels = int(labels_per_sequence[chosen].sum())
        accumulate(model, packed, chosen, 0, n_labels, args.device)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        counts.append(sum(int(lengths[packed.sequences[i]].sum()) for i in chosen))
        times.append(now(args.device))
    return counts, times


def run_trainer(lm, packed, tokenizer, recipe, args, flatten):
    """The same by transformers' Trainer; each step has about as many tokens."""
    starts = packed.segments.starts
    segments = [{"input_ids": ids.tolist()} for ids in np.split(packed.segments.ids, starts[1:-1])]
    per_step = max(1, round(args.batch_size * args.context / np.diff(starts).mean()))
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    if flatten:
        collate = transformers.DataCollatorWithFlattening(return_position_ids=True)
    counts, times = [], []

    def count_and_collate(rows):
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    class Tick(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(now(args.device))

    lm.config.use_cache = False  # with a cache, packed dialogues would see each other
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=args.steps + WARM, per_device_train_batch_size=per_step,
            learning_rate=recipe["lr"], weight_decay=recipe["weight_decay"], max_grad_norm=1.0,
            optim="adamw_torch_fused", bf16="cuda" in args.device,
            use_cpu="cuda" not in args.device, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, torch_compile=args.compile,
            remove_unused_columns=False, dataloader_num_workers=0)
        transformers.Trainer(lm, arguments, data_collator=count_and_collate,
                             train_dataset=segments, callbacks=[Tick()]).train()
    return counts, times


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    flags.add_shared(parser, "data-dir", "device")
    add("--size", choices=("tiny", "1b"), default="tiny", help="tiny (default) or 1b (Llama-3.2's)")
    add("--context", type=int, default=512, help="tokens per packed sequence (default 512)")
    add("--batch-size", type=int, default=4, help="packed sequences per step (default 4)")
    add("--steps", type=int, default=20, help="counted steps per round (default 20)")
    add("--rounds", type=int, default=3, help="rounds of each way (default 3)")
    add("--indexing-repeats", type=int, help="default: the recipe's; 0 = dialogues only")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--peak-tflops", type=float, default=989, help="of the GPU (default 989: H100, H200)")
    args = parser.parse_args()
    flags.check_ranges(args, context=2, batch_size=1, steps=1, rounds=1, indexing_repeats=0,
                       peak_tflops=1e-3)
    return args


def main():
    args = parse_args()
    torch.set_flush_denormal(True)
    recipe = train.RECIPES["demo" if args.size == "tiny" else "paper"]
    repeats = args.indexing_repeats
    if repeats is None:
        repeats = recipe["indexing_repeats"]
    k, tracks, codes_of, dialogues, _ = train.load_data(args.data_dir)
    lm, tokenizer = load_base("tiny", dialogues)
    train.expand_vocabulary(lm, tokenizer, k)
    config = lm.config
    if args.size == "1b":
        config = transformers.LlamaConfig(vocab_size=128256 + len(tokens.MODALITIES) * k + 2,
                                          **LLAMA_1B)
    dialogues += indexing_examples(tracks, codes_of, repeats, standalone_answers(dialogues))
    segments, _, _ = packing.encode_all(tokens.DialogueTokenizer(tokenizer), dialogues, codes_of,
                                        args.context)
    packed = packing.Packed(segments, packing.pack(segments.lengths(), args.context), args.context,
                            tokenizer.pad_token_id)

    speeds, memory = {}, {}
    for _ in range(args.rounds):
        for name in ("04_train.py", "Trainer, padded", "Trainer, packed"):
            if "cuda" in args.device:
                torch.cuda.reset_peak_memory_stats()
            lm = transformers.LlamaForCausalLM(config).to(args.device).train()
            if name == "04_train.py":
                counts, times = run_ours(lm, packed, recipe, args)
            else:
                counts, times = run_trainer(lm, packed, tokenizer, recipe, args, "packed" in name)
            del lm
            speeds.setdefault(name, []).append(
                sum(counts[WARM:len(times)]) / (times[-1] - times[WARM - 1]))
            if "cuda" in args.device:
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
                torch.cuda.empty_cache()

    for name, measured in speeds.items():
        median = statistics.median(measured)
        ratio = statistics.median(np.divide(speeds["04_train.py"], measured))
        line = (f"{name:16}  {median:9,.0f} real tokens/s ({min(measured):,.0f} to "
                f"{max(measured):,.0f});  04_train.py / this: {ratio:.2f}")
        if name in memory:
            line += f";  peak {memory[name]:.1f} GiB"
        if name in memory and args.size == "1b":
            line += f";  MFU {median * GFLOP_PER_TOKEN / args.peak_tflops / 1e3:.1%}"
        print(line)


if __name__ == "__main__":
    main()
