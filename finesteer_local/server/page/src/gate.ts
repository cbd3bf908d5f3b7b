// Where a gate's score lies on its meter, 0 to 1.

import type { Decision } from "./api";

const logistic = (x: number): number => 1 / (1 + Math.exp(-x));
const clamp = (x: number): number => Math.min(1, Math.max(0, x));

/** A score on its natural scale: log-odds as a probability, a cosine from -1 to 1, an energy ratio as it is. */
export function place(kind: string | undefined, score: number): number {
  if (kind === "scs") return clamp(score);
  if (kind === "cast") return clamp((score + 1) / 2);
  if (kind === "always") return clamp(score);
  return logistic(score);
}

export interface Reading {
  score: number; // 0 to 1 along the meter
  threshold: number | null; // null: the gate is always open
  text: string;
}

export function reading(decision: Decision, kind: string | undefined): Reading {
  const always = kind === "always";
  return {
    score: place(kind, decision.score),
    threshold: always ? null : place(kind, decision.threshold),
    text: always
      ? "this profile has no gate: it is always open"
      : `score ${number(decision.score)}, opens above ${number(decision.threshold)}`,
  };
}

/** What is shown of a gate's state, in one or two words. */
export function stateOf(decision: Decision): string {
  if (decision.open) return decision.g < 1 ? `open ${decision.g.toFixed(2)}` : "open";
  return decision.g > 0 ? "open, strength 0" : "closed";
}

export function number(x: number): string {
  return Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(2);
}
