// A conversation is a tree: an edited question or a second answer is a sibling, so nothing is ever lost.
// What is shown, and sent, is the path from the root to `leaf`.

import type { Decision, Should, SteeringRequest, Usage } from "./api";
import { acted, stateOf } from "./gate";

export type AnswerState = "streaming" | "done" | "stopped" | "interrupted" | "error";

/** A correction that the server keeps. */
export interface Correction {
  id: string;
  should: Should;
}

/** One stream of text from the server, and how it was decided. */
export interface Answer {
  content: string;
  state: AnswerState;
  steering?: SteeringRequest | false;
  decisions?: Decision[];
  kinds?: Record<string, string>; // profile -> kind of its gate
  wrong?: Record<string, Correction>; // profile -> what it should have done
  error?: string;
  finish?: string;
  usage?: Usage;
  seconds?: number;
}

interface Node {
  id: string;
  parent: string | null;
  created: number;
}

export interface Question extends Node {
  role: "user";
  content: string;
}

export interface Reply extends Node {
  role: "assistant";
  answer: Answer;
  /** The same question with the least steering that the server allows, where it was compared. */
  plain?: Answer;
  /** Which of the two the conversation goes on with. */
  goesOn?: "plain";
}

export type Turn = Question | Reply;

export interface Conversation {
  id: string;
  title: string;
  named: boolean; // by the person, not after the first question
  created: number;
  updated: number;
  system: string;
  nodes: Record<string, Turn>;
  leaf: string | null;
}

/** Random, 80 bits. crypto.randomUUID is missing where the page comes over plain http from another machine. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(10)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function emptyConversation(system: string): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, system, nodes: {}, leaf: null };
}

/** The turns that are shown, first to last. */
export function path(chat: Conversation, leaf: string | null = chat.leaf): Turn[] {
  const turns: Turn[] = [];
  for (let id = leaf; id !== null; ) {
    const turn: Turn | undefined = chat.nodes[id];
    if (!turn || turns.includes(turn)) break;
    turns.push(turn);
    id = turn.parent;
  }
  return turns.reverse();
}

/** The versions of a turn, itself among them, oldest first. */
export function versions(chat: Conversation, turn: Turn): Turn[] {
  return children(chat, turn.parent);
}

function children(chat: Conversation, parent: string | null): Turn[] {
  return Object.values(chat.nodes)
    .filter((turn) => turn.parent === parent)
    .sort((a, b) => a.created - b.created);
}

/** The conversation as it goes on after `turn`, along the newest versions. */
export function goTo(chat: Conversation, turn: Turn): Conversation {
  let leaf = turn.id;
  for (let next = children(chat, leaf).at(-1); next; next = children(chat, leaf).at(-1)) leaf = next.id;
  return { ...chat, leaf };
}

export function withTurn(chat: Conversation, turn: Turn): Conversation {
  return { ...chat, nodes: { ...chat.nodes, [turn.id]: turn }, leaf: turn.id, updated: Date.now() };
}

export function changed(chat: Conversation, id: string, change: (reply: Reply) => Reply): Conversation {
  const turn = chat.nodes[id];
  if (turn?.role !== "assistant") return chat;
  return { ...chat, nodes: { ...chat.nodes, [id]: change(turn) }, updated: Date.now() };
}

export function without(chat: Conversation, id: string): Conversation {
  const { [id]: gone, ...nodes } = chat.nodes;
  return gone ? { ...chat, nodes, leaf: gone.parent } : chat;
}

/** The answer that the conversation goes on with. */
export function chosen(reply: Reply): Answer {
  return reply.goesOn === "plain" && reply.plain ? reply.plain : reply.answer;
}

export function lastReply(chat: Conversation): Reply | undefined {
  const last = path(chat).at(-1);
  return last?.role === "assistant" ? last : undefined;
}

/** The question that a turn answers, or the turn itself. */
export function questionOf(chat: Conversation, turn: Turn): Question | undefined {
  const question = turn.role === "user" ? turn : chat.nodes[turn.parent ?? ""];
  return question?.role === "user" ? question : undefined;
}

export function cutOff(answer: Answer): Answer {
  return { ...answer, state: "interrupted", error: "Interrupted: the page was closed before the answer was complete." };
}

/** What an answer that was under way when the page or the server died looks like afterwards. */
export function interrupted(chat: Conversation): Conversation {
  const end = (answer: Answer): Answer => (answer.state === "streaming" ? cutOff(answer) : answer);
  let result = chat;
  for (const turn of Object.values(chat.nodes)) {
    if (turn.role !== "assistant") continue;
    if (turn.answer.state !== "streaming" && turn.plain?.state !== "streaming") continue;
    result = { ...result, nodes: { ...result.nodes, [turn.id]: ended(turn, end) } };
  }
  return result;
}

export function ended(reply: Reply, end: (answer: Answer) => Answer): Reply {
  return { ...reply, answer: end(reply.answer), ...(reply.plain && { plain: end(reply.plain) }) };
}

export function titleFrom(question: string): string {
  const line = question.trim().split("\n", 1)[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

function gateWords(decision: Decision): string {
  return acted(decision) && decision.g < 1 ? stateOf(decision) : `${stateOf(decision)} (g ${decision.g.toFixed(2)})`;
}

/** A conversation as Markdown, for people. */
export function asMarkdown(chat: Conversation): string {
  const parts = [`# ${chat.title || "Conversation"}`];
  if (chat.system) parts.push(`> System: ${chat.system.replaceAll("\n", "\n> ")}`);
  for (const turn of path(chat)) {
    if (turn.role === "user") parts.push(`**You:**\n\n${turn.content}`);
    else {
      const answer = chosen(turn);
      const gates = (answer.decisions ?? []).map((d) => `${d.profile} ${gateWords(d)}`);
      parts.push(`**Model:**\n\n${answer.content}${gates.length ? `\n\n_Gate: ${gates.join(", ")}_` : ""}`);
    }
  }
  return `${parts.join("\n\n")}\n`;
}
