"""The rules that hold for every dialogue of 03_synthesize.py, whoever writes it."""


def problems(turns, sampled, negatives, least, most):
    """What is wrong with a dialogue, as a list of sentences; empty if it is fine.

    turns: list of {query, music, response, rejected}
    sampled: ids of the tracks it was made from; at least half of them must be played
    negatives: ids of the tracks that may be played and rejected
    least, most: number of turns
    """
    found = []
    played = [turn["music"] for turn in turns]
    n_sampled = len(set(played) & set(sampled))
    if 2 * n_sampled < len(sampled):
        found.append(f"less than half: {n_sampled} of {len(sampled)} tracks are played")
    if not least <= len(turns) <= most:
        found.append(f"length: {len(turns)} turns, not {least} to {most}")
    if len(set(played)) < len(played):
        found.append("repeated id: a track is played twice")
    for number, turn in enumerate(turns, 1):
        music = turn["music"]
        if not turn["query"].strip() or not turn["response"].strip():
            found.append(f"empty: turn {number} has no query or no answer")
        if turn["rejected"] and music not in negatives:
            found.append(f"not a negative: turn {number} rejects {music}, which is not in the "
                         f"negative set")
        if not turn["rejected"] and music not in sampled:
            found.append(f"unknown id: turn {number} plays {music}, which is not in the playlist")
        if turn["rejected"] and (number == len(turns) or turns[number]["rejected"]):
            found.append(f"two rejections in a row: turn {number} is rejected and no accepted "
                         f"track follows")
    return found
