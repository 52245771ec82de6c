"""What a run with a language model made, why answers were refused, and what it cost."""

from collections import Counter


def cost(tokens_in, tokens_out, price_in, price_out):
    """Dollars, or None where a price (dollars per million tokens) is not known."""
    if price_in is None or price_out is None:
        return None
    return round((tokens_in * price_in + tokens_out * price_out) / 1e6, 4)


def summarise(journals, counts, price_in, price_out):
    """What was made, and what it cost over all tries: a dict.

    journals: {split: from jobs.read_journal}
    counts: {split: n}. Dialogues that an earlier try with a larger n made are left out, but not
        what they cost.
    """
    paid = []
    lines = []
    for split, journal in journals.items():
        for number, of_dialogue in journal.items():
            paid += of_dialogue
            if number < counts[split]:
                lines += of_dialogue

    def reasons(verdict):
        """{the first words of a note: how often}, the most frequent first."""
        notes = [note for line in lines if line["verdict"] == verdict for note in line["notes"]]
        return dict(Counter(note.partition(":")[0] for note in notes).most_common())

    count = Counter(line["verdict"] for line in lines)
    tokens_in = sum(line["in"] for line in paid)
    tokens_out = sum(line["out"] for line in paid)
    return {"made": count["ok"] + count["repaired"],
            "repaired": count["repaired"],
            "asked_twice": count["ask again"],
            "rejected": count["rejected"],
            "repairs": reasons("repaired"),
            "first_answers_refused": reasons("ask again"),
            "reasons": reasons("rejected"),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "cost": cost(tokens_in, tokens_out, price_in, price_out)}


def print_summary(summary):
    """summary: of `summarise`, and `dialogues_a_minute` of this try."""
    text = (f"made {summary['made']:,} (repaired {summary['repaired']:,}), "
            f"rejected {summary['rejected']:,}, asked twice {summary['asked_twice']:,}; "
            f"{summary['tokens_in']:,} tokens in, {summary['tokens_out']:,} out")
    if summary["cost"] is not None:
        text += f", ${summary['cost']:,.4f}"
    if summary["dialogues_a_minute"]:
        text += f"; {summary['dialogues_a_minute']:.1f} dialogues per minute"
    print(text)
    for name, key in (("repaired", "repairs"), ("first answer refused", "first_answers_refused"),
                      ("rejected", "reasons")):
        if summary[key]:
            print(f"  {name}: " + ", ".join(f"{kind} {n}" for kind, n in summary[key].items()))
