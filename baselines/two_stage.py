"""Baseline: retrieval chooses the track, then a language model writes the response about it.

This is the two-stage system of the paper's listening test. The stored rankings of another system
(--retrieval) give the track: the best one that the dialogue has not played yet. An instruct model,
not trained here, is shown the dialogue so far and what is known of that track, and writes the
response (PROMPT below). The rankings are copied; only the responses are new, sampled as TalkPlay's.

Nothing after the query of turn t is used for turn t. What a listener types is never parsed for
special tokens. A killed run goes on where it stopped when the same command is given again.

Reads   tracks.jsonl, annotations/, dialogues_test.jsonl, predictions/<retrieval>.jsonl; the model
Writes  predictions/two_stage.jsonl
Demo    python baselines/two_stage.py --model data/demo/model
        (this only tries the path: that model follows no instructions)
Full    python baselines/two_stage.py --model meta-llama/Llama-3.2-1B-Instruct \
            --data-dir data/mpd --device cuda    (not run)
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, flags, metrics, runs, turns
from common.models import refuse_bad_model
from common.tokens import DATE, encode_text
from steps.evaluate.predictions import read_predictions
from steps.infer.generation import PromptCache, sample

NAME = "two_stage"
INSTRUCT = "instruct model, for instance meta-llama/Llama-3.2-1B-Instruct"
LEAST = 256  # tokens that PROMPT with a track and a query may take
PROMPT = """\
You recommend music in a conversation with a listener. This is the conversation so far:

{conversation}

You have chosen a track and play it now: {track}

Write your reply to the listener's last message in one or two sentences: present the track and say \
why it fits. State nothing about the track but what is written here. Write the reply and nothing \
else."""


def best_new_row(rows, turn):
    """The first row of a ranking that the turns before have not played, else the first."""
    return next((row for row in rows if row not in turn.played), rows[0])


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
                         f"shows the user's message; --model takes an {INSTRUCT}")
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


def load_model(name, device):
    """(model, tokenizer) from a Hugging Face name or a folder.

    Raises SystemExit: there is none, or it is of a kind that `sample` cannot read.
    """
    dtype = torch.bfloat16 if "cuda" in device else torch.float32
    with refuse_bad_model("--model", name, f"A Hugging Face name or a folder of an {INSTRUCT} is "
                          "expected"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype).to(device).eval()

    # Granite, Cohere and Gemma 2 scale their logits after the output layer; `sample` does not
    ids = torch.arange(8, device=device)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
        hidden = model.base_model(input_ids=ids).last_hidden_state
        plain = model.get_output_embeddings()(hidden)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-3, atol=1e-3):
        raise SystemExit(f"--model {name} scales its logits after the output layer, which "
                         f"steps/infer/generation.py leaves out. Llama, Qwen, Mistral, Phi do not")
    return model, tokenizer


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


def answer_batch(model, tokenizer, prompts, rngs, max_new, temperature, top_p):
    """Responses to a batch of prompts: list of strings. rngs: a random generator per prompt."""
    stop = model.generation_config.eos_token_id
    stop = {*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id} - {None}
    cache = PromptCache(model, prompts)
    answers = sample(cache, cache.end, rngs, list(stop), max_new, temperature=temperature,
                     top_p=top_p, may_be_empty=False)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="an instruct model: a Hugging Face name or a folder")
    add("--retrieval", default="bm25",
        help="the system whose predictions/<name>.jsonl gives the tracks (default bm25)")
    add("--batch-size", type=int, default=16, help="turns answered at a time (default 16)")
    add("--context", type=int, default=4096, help="tokens of prompt and response, at most the "
        "model's own; longer prompts lose their oldest turns (default 4096)")
    add("--max-new-tokens", type=int, default=96, help="longest response in tokens (default 96)")
    add("--temperature", type=float, default=1.0, help="0 = greedy (default 1)")
    add("--top-p", type=float, default=0.9, help="nucleus (default 0.9)")
    flags.add_shared(parser, "data-dir", "device", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args, batch_size=1, context=2, max_new_tokens=1, temperature=0,
                       top_p=(1e-6, 1))
    return args


def write_answers(journal, model, tokenizer, jobs, args):
    """Append a response to each prompt to the journal. jobs: (prompt ids, key of the turn)."""
    jobs = sorted(jobs, key=lambda job: len(job[0]))  # prompts of similar length together
    with open(journal, "a", encoding="utf-8") as f, torch.inference_mode():
        for first in tqdm(range(0, len(jobs), args.batch_size), desc="responses"):
            prompts, keys = zip(*jobs[first:first + args.batch_size], strict=True)
            rngs = [metrics.turn_rng(args.seed, *key) for key in keys]
            responses = answer_batch(model, tokenizer, prompts, rngs, args.max_new_tokens,
                                     args.temperature, args.top_p)
            f.writelines(json.dumps({"key": key, "response": response}) + "\n"
                         for key, response in zip(keys, responses, strict=True))
            f.flush()


def read_answers(journal):
    """{key of a turn: response} of those answered so far; a half-written last line is cut off."""
    if not data.keep_whole_lines(journal):
        return {}
    return {tuple(row["key"]): row["response"] for _, row in data.read_jsonl(journal, "")}


def main():
    args = parse_args()
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    dialogues = data.load_dialogues(args.data_dir / "dialogues_test.jsonl", row_of)
    turn_list = turns.collect_turns(dialogues, row_of)
    retrieved = f"predictions/{args.retrieval}.jsonl"
    depths = {min(metrics.DEPTH, len(tracks)), len(tracks)}
    lines = read_predictions(args.data_dir / retrieved, turn_list, row_of, depths)
    rankings = {i: rows.tolist() for i, rows, _ in lines}
    ranked = [(turn, rankings[i]) for i, turn in enumerate(turn_list)]

    reads = [*data.catalogue_files(args.data_dir), "dialogues_test.jsonl", retrieved]
    weights = sorted(Path(args.model).glob("*.safetensors"))  # none where the model is a name
    args.weights = " ".join(runs.file_hash(path) for path in weights)
    writes = [f"predictions/{NAME}.jsonl"]
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, args.resume,
                                record=False, ignore=(*runs.PLACE, "batch_size"))
    if state == "done":
        print(f"{NAME}: already done (--no-resume does it again)")
        return
    model, tokenizer = load_model(args.model, args.device)
    template = template_ids(tokenizer)
    room = prompt_room(model, template, args.context, args.max_new_tokens)

    # what a killed run has not answered
    path = args.data_dir / writes[0]
    journal = path.with_name(path.name + ".part")
    if state == "new":
        journal.unlink(missing_ok=True)
    runs.record_run(run)  # only now: its input is good, and nothing of an older run is left
    answered = read_answers(journal)
    texts = [data.item_text(track) or "a track without a name" for track in tracks]
    jobs = [(prompt_ids(tokenizer, template, turn, best_new_row(rows, turn), texts, room), turn.key)
            for turn, rows in ranked if turn.key not in answered]
    write_answers(journal, model, tokenizer, jobs, args)

    answered = read_answers(journal)
    data.write_jsonl(path, ({"dialogue_id": turn.dialogue_id, "turn": turn.number,
                             "track_ids": [tracks[row]["track_id"] for row in rows],
                             "response": answered[turn.key]} for turn, rows in ranked))
    journal.unlink()
    runs.finish_run(run)
    print(f"Wrote {path}: {len(turn_list):,} responses to the ranking of {args.retrieval}. "
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
