"""A reference reader of FineSteer profiles: docs/profile-format.md in code, with gguf and numpy alone.

    python docs/reference_reader.py PROFILE.gguf STATES.npy [TOKENS]

STATES.npy holds the prompt's hidden states at the gate's layer, float32, shape (n_tokens, n_embd), one row a token:
from the last user message's first token to the prompt's last, or all of the prompt where the gate reads the whole of
it. TOKENS is the number of the prompt's tokens in scope, 1 unless given. Prints the decision, if the file is sound.
"""

import sys

import numpy as np
from gguf import GGUFReader


class Profile:
    """A profile file, read once; `decide` gives what it does to one prompt."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {t.name: np.array(t.data, np.float32) for t in reader.tensors}
        key = self.keys.get
        if key("general.architecture") != "finesteer" or key("finesteer.format_version") != 1:
            raise ValueError("not a profile of format version 1")
        if unknown := {*(key("finesteer.requires") or ())} - {"length_decay", "gate_window", "experts_by_kind"}:
            raise ValueError(f"it requires {unknown}, which this reader does not know")
        self.kind = key("finesteer.gate.kind")
        self.layers = sorted(key("finesteer.layers"))
        self.strength = key("finesteer.strength")
        self.length_decay = key("finesteer.length_decay") or 0.0
        self.by_kind = "experts_by_kind" in (key("finesteer.requires") or ())
        parts = key("finesteer.optional") or ()
        self.kind_names = key("finesteer.kinds.names") if "kinds" in parts else ()
        self.watches = "answer_gate" in parts
        if unknown := {*parts} - {"kinds", "answer_gate"}:
            print(f"left out: {unknown}", file=sys.stderr)

    def gate_key(self, name):
        return self.keys[f"finesteer.gate.{name}"]

    def gate(self, states):
        """The score and g of hidden states (n_tokens, n_embd)."""
        return {"always": always, "scs": scs, "contrastive": contrastive, "cast": cast}[self.kind](self, states)

    def kinds(self, states):
        """By name how likely a prompt is of each kind of request; {} where the profile tells none."""
        if not self.kind_names:
            return {}
        x, logits, _, (start, stop) = attend(self, states)
        attention = softmax(logits[start:stop]).mean(axis=1)  # (stop - start,)
        y = attention @ x[start:stop]
        if "kinds.hidden.weight" in self.tensors:
            y = np.maximum(y @ self.tensors["kinds.hidden.weight"] + self.tensors["kinds.hidden.bias"], 0)
        odds = y @ self.tensors["kinds.weight"] + self.tensors["kinds.bias"]
        needed = self.keys["finesteer.kinds.slope"] * self.gate(states)[0] + self.keys["finesteer.kinds.offset"]
        return dict(zip(self.kind_names, 1 / (1 + np.exp(-needed)) / (1 + np.exp(-odds)), strict=True))

    def watch(self, states):
        """The scores read from an answer's states, (n_tokens, n_embd), and the token that opens the gate, or None."""
        every, first, decay, bias, threshold = (
            self.keys[f"finesteer.answer_gate.{name}"] for name in ("every", "first", "decay", "bias", "threshold")
        )
        d, mean, scores, opened_at = decay**every, 0.0, [], None
        for t in range(every, len(states) + 1, every):
            mean = d * mean + (1 - d) * (float(states[t - 1] @ self.tensors["answer_gate.weight"]) + bias)
            scores.append(mean / (1 - d ** (t // every)))
            if opened_at is None and t >= first and scores[-1] > threshold:
                opened_at = t
        return scores, opened_at

    def vector(self, layer, h, kinds):
        """`C'alpha + U beta`, (n_embd,), for the last token's hidden state, or for the prompt's kinds."""
        at = {name: self.tensors.get(name) for name in expert_tensors(layer)}
        prototypes, weight, bias, basis, w0, b0, w2, b2 = at.values()
        alpha = softmax(h @ weight + bias)
        if self.by_kind and kinds:
            of_kinds = zip(self.keys["finesteer.kinds.experts"], kinds.values(), strict=True)
            labels = self.keys[f"finesteer.experts.{layer}.labels"]
            shares = np.array([[p * (expert == label) for label in labels] for expert, p in of_kinds]).sum(axis=0)
            alpha = shares / shares.sum() if shares.any() else alpha
        v = alpha @ prototypes
        if basis is not None:
            v = v + basis @ (np.maximum(h @ w0 + b0, 0) @ w2 + b2)
        return v

    def decide(self, states, n_tokens=1):
        """The score, g, and by layer the vector for a prompt of `n_tokens` tokens in scope: strength * f * g * v(h)."""
        score, g = self.gate(states)
        if g == 0 or self.strength == 0:
            return score, g, {}
        factor = (64 / min(max(n_tokens, 64), 512)) ** self.length_decay
        h, kinds, scale = states[-1], self.kinds(states), np.float32(self.strength * factor * g)
        return score, g, {layer: scale * self.vector(layer, h, kinds) for layer in self.layers}


def expert_tensors(layer):
    """The names of a layer's tensors, in the order of C, A, a, U, W_0, b_0, W_2, b_2."""
    beta = (f"residual.{layer}.beta.{i}.{part}" for i in (0, 2) for part in ("weight", "bias"))
    router = f"experts.{layer}.router"
    return [f"experts.{layer}.prototypes", f"{router}.weight", f"{router}.bias", f"residual.{layer}.basis", *beta]


def always(profile, states):
    """Opens for every prompt."""
    return 1.0, 1.0


def scs(profile, states):
    """Subspace-guided conditional steering."""
    mean, basis, calibration = (profile.tensors[f"gate.{name}"] for name in ("mean", "basis", "calibration"))
    centred = states[-1] - mean
    energy = float(centred @ centred)
    score = float(np.sum((centred @ basis) ** 2)) / energy if energy > 0 else 0.0
    eps, gamma, floor = (profile.gate_key(name) for name in ("eps", "gamma", "floor"))
    rank = max(int(np.ceil(eps * len(calibration) - 1e-9)), 1)
    if score >= calibration[rank - 1]:
        return score, 1.0
    g = (np.searchsorted(calibration, score, side="right") / len(calibration) / eps) ** gamma
    return score, float(g) if g >= floor else 0.0


def contrastive(profile, states):
    """The attention probe."""
    x, logits, values, (start, stop) = attend(profile, states)
    low, high, bias = (profile.gate_key(name) for name in ("low", "high", "bias"))
    score = float(pool(logits[start:stop], values[start:stop]) + x[-1] @ profile.tensors["gate.last_weight"]) + bias
    return score, 1.0 if score >= high else max((score - low) / (high - low), 0.0) if score > low else 0.0


def attend(profile, states):
    """Standardised states, the heads' logits and values for each, and the stretch of tokens in which they find most."""
    mean, scale, query, weight = (
        profile.tensors[f"gate.{name}"] for name in ("mean", "scale", "query", "value_weight")
    )
    x = np.clip((states - mean) / scale, -8, 8)
    # einsum adds up row by row; BLAS would round differently for more rows, by some 1e-6
    logits, values = (np.einsum("nd,kd->nk", x, np.ascontiguousarray(w.T)) for w in (query, weight))
    n, window = len(x), profile.keys.get("finesteer.gate.window", 0)
    spans = [(0, n)]
    if 0 < window < n:
        spans += [(start, start + window) for start in (*range(0, n - window, max(window // 4, 1)), n - window)]
    return x, logits, values, max(spans, key=lambda span: pool(logits[slice(*span)], values[slice(*span)]))


def pool(logits, values):
    """What the heads make of some tokens."""
    weights = np.exp(logits - logits.max(axis=0))
    return ((weights * values).sum(axis=0) / weights.sum(axis=0)).sum()


def softmax(logits):
    """Over the first axis."""
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def cast(profile, states):
    """Conditional activation steering."""
    c = profile.tensors["gate.direction"].astype(np.float64)
    sign, limit = profile.gate_key("sign"), profile.gate_key("limit")
    x = states.mean(axis=0, dtype=np.float64) if profile.gate_key("over_prompt") else states[-1].astype(np.float64)
    y = np.tanh(c * (c @ x) / (c @ c))
    score = sign * float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    return score, float(score > sign * limit)


if __name__ == "__main__":
    profile, states = Profile(sys.argv[1]), np.load(sys.argv[2])
    score, g, vectors = profile.decide(states, *map(int, sys.argv[3:]))
    print(f"score {score:.6g}, g {g:.6g}, kinds {profile.kinds(states)}")
    for layer, vector in vectors.items():
        print(f"layer {layer}: vector of length {np.linalg.norm(vector):.6g}, begins {vector[:4]}")
