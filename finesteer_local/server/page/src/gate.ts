// What is said of a gate's reading, and where its score lies on its meter.

import type { AnswerReading, Decision } from "./api";

const logistic = (x: number): number => 1 / (1 + Math.exp(-x));
const clamp = (x: number): number => Math.min(1, Math.max(0, x));

/** A score on its natural scale, 0 to 1: log-odds as a probability, a cosine from -1 to 1, an energy ratio as it is. */
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
    text: always ? "this profile has no gate: it is always open" : scores(decision.score, decision.threshold),
  };
}

/** The gate on the answer, in log-odds; null where it has read nothing that was told. */
export function answerReading({ score, threshold }: AnswerReading): Reading | null {
  return score === null ? null : { score: logistic(score), threshold: logistic(threshold), text: scores(score, threshold) };
}

function scores(score: number, threshold: number): string {
  return `score ${number(score)}, opens above ${number(threshold)}`;
}

/** Whether the answer showed what its question hid: the question's own gate stayed shut then. */
export const shownByAnswer = (decision: Decision): boolean => (decision.answer?.opened_at ?? null) !== null;

/** Whether the question's own gate opened. */
export const questionOpened = (decision: Decision): boolean => decision.g > 0 && !shownByAnswer(decision);

/** Whether the answer is not the model's own. */
export const acted = (decision: Decision): boolean => decision.open || decision.action === "refuse";

/** What is shown of a gate's state, in a few words. */
export function stateOf(decision: Decision): string {
  return shownByAnswer(decision) ? "shown by the answer" : questionState(decision);
}

/** The same of the question's gate alone. */
export function questionState(decision: Decision): string {
  const { action, g, open, strength } = decision;
  if (action === "refuse") return "refused at once";
  if (!questionOpened(decision)) return action === "report" && !shownByAnswer(decision) ? "closed, reported" : "closed";
  if (action === "leave") return "open, left alone";
  if (!open) return strength > 0 ? "open, reported" : "open, strength 0";
  return g < 1 ? `open ${g.toFixed(2)}` : "open";
}

/** What was done about a question instead of steering its answer. */
export function policyWords({ action, strength }: Decision): string {
  if (action === "report" && strength === 0) return "";
  return { refuse: "refused at once", report: "reported only", leave: "left alone" }[action ?? ""] ?? "";
}

const SHOWN_KIND = 0.1;

/** The likeliest kind of request, and up to three more that are not next to nothing; the answer may have shown another. */
export function kindsWords(decision: Decision): string {
  if (!decision.action) return "none";
  const likeliest = [...(decision.kinds ?? [])].sort((a, b) => b.probability - a.probability).slice(0, 4);
  const shown = likeliest.filter((kind, i) => (i === 0 && !shownByAnswer(decision)) || kind.probability >= SHOWN_KIND);
  if (!shown.length) return "none";
  return shown.map(({ name, probability }) => `${name.replaceAll("_", " ")} ${Math.round(probability * 100)} %`).join(", ");
}

const tokens = (n: number): string => `${n} ${n === 1 ? "token" : "tokens"}`;

/** When the answer showed what its question hid, and what was done about it; `over`: it is complete. */
export function answerWords({ action, opened_at, taken_back }: AnswerReading, over: boolean): string {
  if (opened_at === null) return over ? "read to its end, and nothing showed" : "read while it is written";
  const back = taken_back ? `${tokens(taken_back)} taken back, ` : "";
  const done = { report: "reported only", stop: "ended" }[action] ?? "steered from there";
  return `shown at token ${opened_at}, ${back}${done}`;
}

export function number(x: number): string {
  return Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(2);
}
