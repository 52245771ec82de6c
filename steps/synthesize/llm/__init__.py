"""Dialogues by a language model: optional, skip at first reading.

`converse` is what 03_synthesize.py calls. `prompt` writes a chunk of a playlist into prompt.txt,
`gemini` or `local` asks a model, `jobs` keeps many calls going and puts each answer on disk, and
`parse` makes a dialogue of an answer.
"""
