"""A behaviour from one sentence: the model itself writes what a profile is trained on.

`sentence` reads what the sentence rules and where it does not hold, `seeds` has our own subjects and examples, `write`
has the model write questions and answers, `material` keeps them, `shown` compares before and after.
"""
