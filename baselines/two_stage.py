"""Baseline: retrieval chooses the track, then a language model writes the response about it.

This is the two-stage system of the paper's listening test. The stored rankings of another system
(--retrieval) give the track: the best one that the dialogue has not played yet. An instruct model,
not trained here, is shown the dialogue so far and what is known of that track, and writes the
response (PROMPT below). The rankings are copied, so 06_evaluate.py gives the figures of
--retrieval; only the responses are new. They are sampled as TalkPlay's are by default (temperature
1, top-p 0.9), each turn from a random stream of its own.

Nothing after the query of turn t is used for turn t. What a listener types is never parsed for
special tokens. A killed run goes on where it stopped when the same command is given again.

Reads   tracks.jsonl, annotations/, dialogues_test.jsonl, predictions/<retrieval>.jsonl; the model
Writes  predictions/two_stage.jsonl
Demo    python baselines/two_stage.py --model data/demo/model
        (this only tries the path: that model follows no instructions)
Full    python baselines/two_stage.py --model meta-llama/Llama-3.2-1B-Instruct \
            --data-dir data/mpd --device cuda
The full command was not run: the checkpoint could not be had where this was written.
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
from common.tokens import DATE, encode_text
from steps.infer.generation import PromptCache, sample

NAME = "two_stage"
LEAST = 256  # tokens that PROMPT with a track and a query may take
PROMPT = """\
You recommend music in a conversation with a listener. This is the conversation so far:

{conversation}

You have chosen a track and play it now: {track}

Write your reply to the listener's last message in one or two sentences: present the track and say \
why it fits. State nothing about the track but what is written here. Write the reply and nothing \
else."""


# ---------------------------------------------------------------- the track

def read_rankings(path, turn_list, row_of):
    """The rankings of a predictions file: {(dialogue_id, turn): track_ids}.

    turn_list: the turns that it must cover.
    Raises SystemExit: missing file, missing turn, unknown track.
    """
    made_by = ("the script of that system, for instance python baselines/bm25.py --data-dir "
               f"{path.parent.parent}")
    rankings = {}
    for number, row in data.read_jsonl(path, made_by):
        track_ids = row.get("track_ids")
        if not (isinstance(track_ids, list) and track_ids and set(track_ids) <= row_of.keys()):
            raise SystemExit(f"{path}:{number}: track_ids must be a list of ids of tracks.jsonl. "
                             f"Make the file again with: {made_by}")
        rankings[row.get("dialogue_id"), row.get("turn")] = track_ids
    missing = [turn for turn in turn_list if turn.key not in rankings]
    if missing:
        raise SystemExit(f"{path}: dialogue {missing[0].dialogue_id}, turn {missing[0].number} is "
                         f"missing ({len(missing)} in all). Make the file again with: {made_by}")
    return rankings


def best_new_row(track_ids, turn, row_of):
    """Row of the best track that the turns before have not played, else of the best one."""
    rows = [row_of[track_id] for track_id in track_ids]
    return next((row for row in rows if row not in turn.played), rows[0])


# ---------------------------------------------------------------- the prompt

def template_ids(tokenizer):
    """Ids of the chat template before and after a user's message: two lists.

    Raises SystemExit: the tokenizer has no template, or one that leaves the message out.
    """
    text = ""
    if tokenizer.chat_template is not None:
        # date_string: Llama 3's template would print today's date
        # enable_thinking: Qwen 3's template would ask for a train of thought
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "@message@"}], tokenize=False, add_generation_prompt=True,
            date_string=DATE, enable_thinking=False)
    before, message, after = text.partition("@message@")
    if not message:
        raise SystemExit(f"the tokenizer of {tokenizer.name_or_path} has no chat template that "
                         f"shows the user's message; --model takes an instruct model, for instance "
                         f"meta-llama/Llama-3.2-1B-Instruct")
    return [tokenizer.encode(side, add_special_tokens=False) for side in (before, after)]


def turn_texts(turn, texts):
    """What was said and played in each turn before, and the query: list of strings, oldest first.

    texts: what stands for a played track, list of (N,) strings.
    """
    played = iter(turn.played)
    messages = []
    for past in turn.past:
        messages.append([f"Listener: {past['query']}"])
        if past["music"]:
            messages[-1].append(f"You played: {texts[next(played)]}")
        if past["response"]:
            messages[-1].append(f"You: {past['response']}")
    messages.append([f"Listener: {turn.query}"])
    # a line break within a message must not look like a new message
    return ["\n".join(" ".join(line.split()) for line in lines) for lines in messages]


def prompt_ids(tokenizer, template, turn, row, texts, room):
    """Ids of the whole prompt. If it has more than `room`, the oldest turns are left out."""
    before, after = template
    room -= len(before) + len(after)
    said = turn_texts(turn, texts)
    for first in range(len(said)):
        conversation = "\n".join(said[first:])
        ids = encode_text(tokenizer, PROMPT.format(conversation=conversation, track=texts[row]))
        if len(ids) <= room:
            break
    return [*before, *ids[-room:], *after]


# ---------------------------------------------------------------- the model

def load_model(name, device):
    """(model, tokenizer) from a Hugging Face name or a folder.

    Raises SystemExit: there is none, or it is of a kind that `sample` cannot read.
    """
    dtype = torch.bfloat16 if "cuda" in device else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise SystemExit(f"--model {name} cannot be loaded: {str(error).strip().splitlines()[0]} "
                         f"A Hugging Face name or a folder with an instruct model is expected, for "
                         f"instance meta-llama/Llama-3.2-1B-Instruct") from None

    # Granite, Cohere and Gemma 2 scale their logits after the output layer; `sample` does not
    ids = torch.arange(8, device=device)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
        hidden = model.base_model(input_ids=ids).last_hidden_state
        plain = model.get_output_embeddings()(hidden)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-3, atol=1e-3):
        raise SystemExit(f"--model {name} scales its logits after the output layer, which "
                         f"steps/infer/generation.py leaves out, so its responses would be sampled "
                         f"wrongly. Models that do not are accepted: Llama, Qwen, Mistral, Phi")
    return model, tokenizer


def stop_ids(model, tokenizer):
    """The tokens that end a response, as generation_config.json and the tokenizer name them."""
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return [i for i in {*ids, tokenizer.eos_token_id} if i is not None]


def answer_batch(model, tokenizer, prompts, rngs, max_new, temperature, top_p):
    """Responses to a batch of prompts: list of strings. rngs: a random generator per prompt."""
    cache = PromptCache(model, prompts)
    answers = sample(cache, cache.end, rngs, stop_ids(model, tokenizer), max_new,
                     temperature=temperature, top_p=top_p, may_be_empty=False)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def read_answers(journal):
    """The responses that a killed run has left: {(dialogue_id, turn): response}.

    A half-written last line is cut off.
    """
    if not data.keep_whole_lines(journal):
        return {}
    return {(row["dialogue_id"], row["turn"]): row["response"]
            for _, row in data.read_jsonl(journal, "")}


# ---------------------------------------------------------------- main

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="an instruct model: a Hugging Face name or a folder")
    add("--retrieval", default="bm25",
        help="the system whose predictions/<name>.jsonl gives the tracks (default bm25)")
    add("--data-dir", type=Path, default=Path("data/demo"), help="data folder (default data/demo)")
    add("--device", type=resolve_device, default="auto",
        help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--batch-size", type=int, default=16, help="turns answered at a time (default 16)")
    add("--context", type=int, default=4096,
        help="tokens of prompt and response, at most the model's own; longer prompts lose their "
             "oldest turns (default 4096)")
    add("--max-new-tokens", type=int, default=96, help="longest response in tokens (default 96)")
    add("--temperature", type=float, default=1.0, help="0 = greedy (default 1)")
    add("--top-p", type=float, default=0.9, help="nucleus (default 0.9)")
    add("--seed", type=int, default=0, help="of the sampling (default 0)")
    add("--limit", type=int, default=0,
        help="turns, for a trial; 0 (default) = all (06_evaluate.py accepts nothing less)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with a run that was cut (default); --no-resume starts afresh")
    return parser.parse_args()


def prompt_room(model, template, context, max_new):
    """How many tokens the prompt may have. Raises SystemExit: too few."""
    context = min(context, getattr(model.config, "max_position_embeddings", context))
    room = context - max_new
    needed = sum(map(len, template)) + LEAST
    if room < needed:
        raise SystemExit(f"a context of {context} tokens and --max-new-tokens {max_new} leave "
                         f"{max(0, room)} to the prompt; {needed} are needed. Give a longer "
                         f"--context, a lower --max-new-tokens or a model with a longer context")
    return room


def main():
    args = parse_args()
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    dialogues = data.load_dialogues(args.data_dir / "dialogues_test.jsonl", row_of)
    turn_list = turns.collect_turns(dialogues, row_of)[:args.limit or None]
    retrieved = f"predictions/{args.retrieval}.jsonl"
    rankings = read_rankings(args.data_dir / retrieved, turn_list, row_of)

    reads = [*data.catalogue_files(args.data_dir), "dialogues_test.jsonl", retrieved]
    weights = sorted(Path(args.model).glob("*.safetensors"))  # none where the model is a name
    args.weights = " ".join(runs.file_hash(path) for path in weights)
    path = args.data_dir / "predictions" / f"{NAME}.jsonl"
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, [f"predictions/{NAME}.jsonl"],
                                resume=args.resume, record=False,
                                ignore=("data_dir", "resume", "device", "batch_size"))
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return
    model, tokenizer = load_model(args.model, args.device)
    template = template_ids(tokenizer)
    room = prompt_room(model, template, args.context, args.max_new_tokens)
    runs.record_run(run)  # only now: all input has proved good

    # what a killed run has not answered, prompts of similar length together
    journal = path.with_name(path.name + ".part")
    if state == "new":
        journal.unlink(missing_ok=True)
    answered = read_answers(journal)
    texts = [data.item_text(track) or "a track without a name" for track in tracks]
    jobs = []
    for turn in turn_list:
        if turn.key not in answered:
            row = best_new_row(rankings[turn.key], turn, row_of)
            jobs.append((prompt_ids(tokenizer, template, turn, row, texts, room), turn.key))
    jobs.sort(key=lambda job: len(job[0]))

    with open(journal, "a", encoding="utf-8") as f, torch.inference_mode():
        for first in tqdm(range(0, len(jobs), args.batch_size), desc="responses"):
            prompts, keys = zip(*jobs[first:first + args.batch_size], strict=True)
            rngs = [metrics.turn_rng(args.seed, *key) for key in keys]
            responses = answer_batch(model, tokenizer, prompts, rngs, args.max_new_tokens,
                                     args.temperature, args.top_p)
            for (dialogue_id, number), response in zip(keys, responses, strict=True):
                answered[dialogue_id, number] = response
                f.write(json.dumps({"dialogue_id": dialogue_id, "turn": number,
                                    "response": response}) + "\n")
            f.flush()
    data.write_jsonl(path, ({"dialogue_id": turn.dialogue_id, "turn": turn.number,
                             "track_ids": rankings[turn.key], "response": answered[turn.key]}
                            for turn in turn_list))
    journal.unlink()
    runs.finish_run(run)
    print(f"Wrote {path}: {len(turn_list):,} responses to the ranking of {args.retrieval}. "
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
