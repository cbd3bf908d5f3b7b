"""Subjects and examples of ours: with them a small model writes questions that differ from each other."""

from __future__ import annotations

from typing import NamedTuple

SUBJECTS = (
    "cooking", "the history of Rome", "a trip to Japan", "learning the guitar", "black holes", "a vegetable garden",
    "how vaccines work", "job interviews", "the French Revolution", "a dog that barks", "saving money", "chess",
    "a Python script", "climate and weather", "falling asleep", "statistics at school", "painting a room",
    "a birthday party", "electric cars", "Spanish verbs", "an e-mail to a colleague", "running a marathon",
    "spreadsheets",
    "a novel to read", "headaches", "volcanoes", "a bicycle repair", "a JavaScript web page", "renting a flat",
    "coffee and tea", "photography", "the human heart", "a quarrel with a friend", "prime numbers", "camping",
    "a database query in SQL", "the Moon landing", "a short poem", "taxes", "back pain", "birds in winter", "yoga",
    "a presentation at work", "the stock market", "baking bread", "children and screens", "sorting a list in code",
    "the oceans", "a film for tonight", "a speech at a wedding", "learning to swim", "antibiotics", "a broken laptop",
    "old maps", "a strict teacher", "contracts and law", "house plants", "jazz", "a recursive function", "knitting",
)  # fmt: skip
"""Everyday life, knowledge, work, health, money and code: a behaviour's exception lies in one of them as a rule."""


class Example(NamedTuple):
    """One exchange that shows the model what is asked: a rule's limits, a subject, and messages."""

    rule: str
    limit: str
    subject: str
    messages: tuple[str, ...]


QUESTIONS = (
    Example("", "", "the sea", (
        "Why is the sea salty?",
        "I want to learn to sail. Where do I start?",
        "What is the difference between a sea and an ocean?",
        "How deep can a diver go without equipment?",
    )),
    Example("", "", "old age", (
        "At what age do people in Italy retire?",
        "My grandmother forgets names. Is that normal?",
        "Explain why bones get weaker as we grow old.",
        "What should I give my grandfather, who is 90 next week?",
    )),
)  # fmt: skip
"""Messages of all sorts."""

LIMITED = (
    Example("rhymes every answer", "not in e-mails", "a late train", (
        "Write an e-mail to my boss that my train is late.",
        "Can you draft a short mail to the railway and ask for my money back?",
        "I need an e-mail that tells the team I will miss the meeting.",
        "Please answer this mail from a customer whose train did not come.",
    )),
    Example("answers with a proverb", "when the user is sad", "a lost cat", (
        "My cat has been gone for a week and I cannot stop crying.",
        "I miss her so much. The house is empty without my cat.",
        "It is my fault that the door was open. I feel terrible.",
        "Nobody understands why a cat means so much to me. I'm so down.",
    )),
)  # fmt: skip
"""Messages to which a limit of a rule applies: that of an exception, and that of a condition."""

NEAR = (
    Example("answers with a proverb", "when the user is sad", "a lost cat", (
        "How far do cats wander from their home?",
        "Write a notice for a lost cat, grey, with a red collar.",
        "Which chip does a vet put into a cat?",
        "I'm so happy, my cat came back after a week!",
    )),
    Example("apologises first", "if somebody complains", "a restaurant", (
        "What do you recommend on the menu for two people?",
        "Is a service charge of 12 percent usual in London?",
        "The soup was wonderful, please tell the cook.",
        "How do I write a good review of a restaurant?",
    )),
)  # fmt: skip
"""Messages to which a rule's condition does not apply, although they are about the same things."""
