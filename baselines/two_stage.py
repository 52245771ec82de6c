"""Baseline: retrieval first, then a language model writes the answer (the two-stage system of the paper's listening test).

Another system's stored rankings (--retrieval) give the track: the best one that the dialogue has not played yet. An
instruct model, as it comes and not trained here, is shown the dialogue so far and what is known of that track,
and writes the answer (PROMPT below). The rankings are copied, so the figures of 06_evaluate.py are those of --retrieval;
what is new is the response. It is sampled as TalkPlay's are by default (temperature 1, top-p 0.9), from a random
stream of its own for each turn, so that no answer depends on its batch.

Nothing after the query of turn t is used for turn t. What a listener types is never parsed for special tokens.

Not run with a real model: no instruct checkpoint could be had where this was built. What was run is the
whole path, on a small Llama with random weights (tests/test_two_stage.py).

Reads   tracks.jsonl, dialogues_test.jsonl, predictions/<retrieval>.jsonl; the model
Writes  predictions/two_stage.jsonl
Demo    python baselines/two_stage.py --model data/demo/model      (a trial of the path: that model follows no instructions)
Full    python baselines/two_stage.py --model meta-llama/Llama-3.2-1B-Instruct --data-dir data/mpd --device cuda

A killed run goes on where it stopped when the same command is given again.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, metrics, runs, turns
from common.process import resolve_device
from steps.infer.generation import PromptCache, sample
from common.tokens import DATE, encode_text

NAME = "two_stage"
LEAST = 256  # tokens that PROMPT with a track and a query may take
PROMPT = """You recommend music in a conversation with a listener. This is the conversation so far:

{conversation}

You have chosen a track and play it now: {track}

Write your reply to the listener's last message in one or two sentences: present the track and say why it fits. State \
nothing about the track but what is written here. Write the reply and nothing else."""


# ---------------------------------------------------------------- the track

def read_rankings(path, found, row_of):
    """{(dialogue_id, turn): track_ids} of a predictions file.

    found: list of Turn that it has to cover. Raises SystemExit: missing file, missing turn, unknown track.
    """
    made_by = f"the script of that system, for instance python baselines/bm25.py --data-dir {path.parent.parent}"
    rankings = {}
    for number, row in data.read_jsonl(path, made_by):
        rankings[row.get("dialogue_id"), row.get("turn")] = track_ids = row.get("track_ids")
        if not isinstance(track_ids, list) or not track_ids or any(t not in row_of for t in track_ids):
            raise SystemExit(f"{path}:{number}: track_ids is to be a list of ids of tracks.jsonl. "
                             f"Make the file again with: {made_by}")
    missing = [turn for turn in found if (turn.dialogue_id, turn.number) not in rankings]
    if missing:
        raise SystemExit(f"{path}: dialogue {missing[0].dialogue_id}, turn {missing[0].number} is missing ({len(missing)} in all). "
                         f"Make the file again with: {made_by}")
    return rankings


def best_new_row(ranking, turn, row_of):
    """Row of the best track that the turns before have not played; of the best one where all have been."""
    rows = [row_of[track_id] for track_id in ranking]
    return next((row for row in rows if row not in turn.played), rows[0])


# ---------------------------------------------------------------- the prompt

def chat_pieces(tokenizer):
    """Ids of the chat template before and after the message of a user: two lists. Raises SystemExit: no template."""
    text = ""
    if tokenizer.chat_template is not None:
        # DATE: Llama-3's template would print today's; enable_thinking: Qwen3's would ask for a train of thought
        text = tokenizer.apply_chat_template([{"role": "user", "content": "@message@"}], tokenize=False,
                                             add_generation_prompt=True, date_string=DATE, enable_thinking=False)
    head, cut, tail = text.partition("@message@")
    if not cut:
        raise SystemExit(f"the tokenizer of {tokenizer.name_or_path} has no chat template that shows the user's message; --model "
                         f"takes an instruct model, for instance meta-llama/Llama-3.2-1B-Instruct")
    return [tokenizer.encode(piece, add_special_tokens=False) for piece in (head, tail)]


def conversation_text(turn, first, texts, row_of):
    """The dialogue from its turn `first` (from 0) up to the query, a line a message.

    texts: (N,) list, what stands for a played track.
    """
    lines = []
    for past in turn.past[first:]:
        lines.append(f"Listener: {past['query']}")
        if past["music"]:
            lines.append(f"You played: {texts[row_of[past['music']]]}")
        if past["response"]:
            lines.append(f"You: {past['response']}")
    lines.append(f"Listener: {turn.query}")
    return "\n".join(" ".join(line.split()) for line in lines)  # a message with line breaks must not pass for several


def prompt_ids(tokenizer, pieces, turn, row, texts, row_of, room):
    """Ids of the whole prompt. The oldest turns are left out where it would have more than `room` ids."""
    head, tail = pieces
    room -= len(head) + len(tail)
    for first in range(len(turn.past) + 1):
        conversation = conversation_text(turn, first, texts, row_of)
        ids = encode_text(tokenizer, PROMPT.format(conversation=conversation, track=texts[row]))
        if len(ids) <= room:
            break
    return [*head, *ids[-room:], *tail]


# ---------------------------------------------------------------- the model

def load_model(name, device):
    """(model, tokenizer) by a Hugging Face name or from a folder. Raises SystemExit: none there, or of no use here."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16 if "cuda" in device else torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise SystemExit(f"--model {name} cannot be loaded: {str(error).strip().splitlines()[0]} A Hugging Face name or a "
                         f"folder with an instruct model is expected, for instance meta-llama/Llama-3.2-1B-Instruct")
    model = model.to(device).eval()
    ids = torch.arange(8, device=device)[None]
    with torch.inference_mode():
        own = model(input_ids=ids).logits
        plain = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(own.float(), plain.float(), rtol=1e-3, atol=1e-3):  # Granite, Cohere, Gemma 2
        raise SystemExit(f"--model {name} scales its logits after the output layer, which steps/infer/generation.py leaves out, so its "
                         f"answers would be sampled wrongly. Models that do not are accepted: Llama, Qwen, Mistral, Phi")
    return model, tokenizer


def stop_ids(model, tokenizer):
    """The tokens that end an answer, as generation_config.json and the tokenizer name them."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return [i for i in {*named, tokenizer.eos_token_id} if i is not None]


def answer_batch(model, tokenizer, prompts, rngs, max_new, temperature, top_p):
    """Answers to a batch of prompts: list of strings. rngs: a random generator a prompt."""
    reading = PromptCache(model, prompts)
    ids = sample(reading, reading.end, rngs, stop_ids(model, tokenizer), max_new, temperature=temperature, top_p=top_p,
                 may_be_empty=False)
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]


def write_answers(part, jobs, answer, batch_size):
    """Append a line to `part` for each (prompt, turn) of the jobs. answer: function of prompts and turns -> strings."""
    with open(part, "a", encoding="utf-8") as f, torch.inference_mode():
        for first in tqdm(range(0, len(jobs), batch_size), desc="answers"):
            prompts, batch = zip(*jobs[first:first + batch_size])
            for turn, response in zip(batch, answer(prompts, batch)):
                f.write(json.dumps({"dialogue_id": turn.dialogue_id, "turn": turn.number, "response": response}) + "\n")
            f.flush()


def read_answers(part):
    """{(dialogue_id, turn): response} of what write_answers has written; a half-written last line is cut off."""
    if not data.keep_whole_lines(part):
        return {}
    return {(row["dialogue_id"], row["turn"]): row["response"] for _, row in data.read_jsonl(part, "")}


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="A stored ranking's best track, presented by an instruct model.")
    parser.add_argument("--model", required=True, help="an instruct model: a Hugging Face name or a folder")
    parser.add_argument("--retrieval", default="bm25",
                        help="the system whose predictions/<name>.jsonl gives the tracks (default bm25)")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    parser.add_argument("--batch-size", type=int, default=16, help="turns answered at a time (default 16)")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer, at most the model's own; older turns "
                        "are left out of longer prompts (default 4096)")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="longest answer in tokens (default 96)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 = greedy (default 1)")
    parser.add_argument("--top-p", type=float, default=0.9, help="nucleus (default 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument("--limit", type=int, default=0, help="turns, for a trial; 0 = all (06_evaluate.py accepts nothing less)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="go on with a run that was cut (default); --no-resume starts afresh")
    return parser.parse_args()


def main():
    args = parse_args()
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    dialogues = data.load_dialogues(args.data_dir / "dialogues_test.jsonl", row_of)
    found = turns.collect_turns(dialogues, row_of)[:args.limit or None]
    rankings = read_rankings(args.data_dir / "predictions" / f"{args.retrieval}.jsonl", found, row_of)

    reads = [*data.catalogue_files(args.data_dir), "dialogues_test.jsonl", f"predictions/{args.retrieval}.jsonl"]
    args.weights = " ".join(runs.file_hash(path) for path in sorted(Path(args.model).glob("*.safetensors")))  # of a folder
    path = args.data_dir / "predictions" / f"{NAME}.jsonl"
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, [f"predictions/{NAME}.jsonl"], resume=args.resume, record=False,
                                ignore=("data_dir", "resume", "device", "batch_size"))
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return
    model, tokenizer = load_model(args.model, args.device)
    pieces = chat_pieces(tokenizer)
    context = min(args.context, getattr(model.config, "max_position_embeddings", args.context))
    room, needed = context - args.max_new_tokens, sum(map(len, pieces)) + LEAST
    if room < needed:
        raise SystemExit(f"a context of {context} tokens and --max-new-tokens {args.max_new_tokens} leave {max(0, room)} to the prompt; "
                         f"{needed} are needed. Give a longer --context, a lower --max-new-tokens or a model with a longer context")
    runs.record_run(run)  # only now: what it reads has proved good

    part = path.with_name(path.name + ".part")
    if state == "new":
        part.unlink(missing_ok=True)
    done = read_answers(part)
    texts, jobs = [data.item_text(track) or "a track without a name" for track in tracks], []
    for turn in found:
        if (turn.dialogue_id, turn.number) not in done:
            row = best_new_row(rankings[turn.dialogue_id, turn.number], turn, row_of)
            jobs.append((prompt_ids(tokenizer, pieces, turn, row, texts, row_of, room), turn))
    jobs.sort(key=lambda job: len(job[0]))  # like lengths together

    def answer(prompts, batch):
        rngs = [metrics.turn_rng(args.seed, turn.dialogue_id, turn.number) for turn in batch]
        return answer_batch(model, tokenizer, prompts, rngs, args.max_new_tokens, args.temperature, args.top_p)

    write_answers(part, jobs, answer, args.batch_size)
    done = read_answers(part)
    data.write_jsonl(path, ({"dialogue_id": key[0], "turn": key[1], "track_ids": rankings[key], "response": done[key]}
                            for key in [(turn.dialogue_id, turn.number) for turn in found]))
    part.unlink()
    runs.finish_run(run)
    print(f"Wrote {path}: {len(found):,} answers to the ranking of {args.retrieval}. "
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
