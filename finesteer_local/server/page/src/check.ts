// What comes from a file or an older page is checked before it is used: a bad conversation must not break the page.

import type { AnswerReading, Decision, KindShare } from "./api";
import type { Answer, Conversation, Correction, Turn } from "./tree";

type Loose = Record<string, unknown>;

const STATES = ["streaming", "done", "stopped", "interrupted", "error"];

const isObject = (x: unknown): x is Loose => typeof x === "object" && x !== null && !Array.isArray(x);
const isText = (x: unknown): x is string => typeof x === "string";
const isNumber = (x: unknown): x is number => typeof x === "number" && Number.isFinite(x);

function isKind(x: unknown): x is KindShare {
  return isObject(x) && isText(x.name) && isNumber(x.probability);
}

function isReading(x: unknown): x is AnswerReading {
  if (!isObject(x) || !isText(x.action) || ![x.threshold, x.taken_back].every(isNumber)) return false;
  return [x.score, x.opened_at].every((value) => value === null || isNumber(value));
}

function isDecision(x: unknown): x is Decision {
  if (!isObject(x)) return false;
  const experts = x.experts;
  return (
    [x.profile, x.scope].every(isText) &&
    [x.g, x.score, x.threshold, x.strength, x.answer_strength, x.gate_layer].every(isNumber) &&
    typeof x.open === "boolean" &&
    Array.isArray(x.layers) &&
    x.layers.every(isNumber) &&
    (x.action === undefined || x.action === null || isText(x.action)) &&
    (x.kinds === undefined || (Array.isArray(x.kinds) && x.kinds.every(isKind))) &&
    (x.answer === undefined || x.answer === null || isReading(x.answer)) &&
    (experts === undefined ||
      (Array.isArray(experts) && experts.every((e) => isObject(e) && isText(e.name) && isNumber(e.weight))))
  );
}

/** Keeps the decisions that can be shown. */
export function decisionsOf(x: unknown): Decision[] | undefined {
  return Array.isArray(x) ? x.filter(isDecision) : undefined;
}

function isCorrection(x: unknown): x is Correction {
  return isObject(x) && isText(x.id) && (x.should === "steer" || x.should === "leave");
}

function isAnswer(x: unknown): x is Answer {
  if (!isObject(x) || !isText(x.content) || !STATES.includes(x.state as string)) return false;
  if (x.error !== undefined && !isText(x.error)) return false;
  if (x.kinds !== undefined && !isObject(x.kinds)) return false;
  if (x.wrong !== undefined && !(isObject(x.wrong) && Object.values(x.wrong).every(isCorrection))) return false;
  if (x.seconds !== undefined && !isNumber(x.seconds)) return false;
  if (x.usage !== undefined && !(isObject(x.usage) && isNumber(x.usage.completion_tokens))) return false;
  return x.decisions === undefined || (Array.isArray(x.decisions) && x.decisions.every(isDecision));
}

function isTurn(x: unknown): x is Turn {
  if (!isObject(x) || !isText(x.id) || !isNumber(x.created)) return false;
  if (x.parent !== null && !isText(x.parent)) return false;
  if (x.role === "user") return isText(x.content);
  return x.role === "assistant" && isAnswer(x.answer) && (x.plain === undefined || isAnswer(x.plain));
}

/** The conversation, or null where it is not one. */
export function conversationOf(x: unknown): Conversation | null {
  if (!isObject(x) || !isText(x.id) || !x.id || !isText(x.title) || !isText(x.system)) return null;
  if (!isNumber(x.created) || !isNumber(x.updated) || !isObject(x.nodes)) return null;
  if (x.leaf !== null && !(isText(x.leaf) && x.leaf in x.nodes)) return null;
  for (const [id, turn] of Object.entries(x.nodes)) if (!isTurn(turn) || turn.id !== id) return null;
  return { ...(x as unknown as Conversation), named: x.named === true };
}
