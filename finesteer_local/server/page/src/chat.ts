// Asking: send, stop, regenerate, edit, compare.

import { signal } from "@preact/signals";
import { chat as stream, type ChatMessage, type ChatRequest, ServerError, type SteeringRequest } from "./api";
import { decisionsOf } from "./check";
import { kinds, learnt, leastSteering, model, noticeAway, reach, steering } from "./server";
import { NO_SAMPLING, sampling } from "./settings";
import { busy, type Chat, current, raise, update, whileBusy } from "./store";
import { toast } from "./toast";
import {
  type Answer,
  changed,
  type Conversation,
  chosen,
  cutOff,
  newId,
  path,
  type Question,
  type Reply,
  titleFrom,
  type Turn,
  without,
  withTurn,
} from "./tree";

const DRAW_EVERY = 40; // ms; a fast model gives a token every 5
const WAIT_AT_MOST = 3; // times, where the server is busy or loading

const aborts = new Map<string, AbortController>();

/** Said once to screen readers; a token at a time would be noise. */
export const announcement = signal("");

export function stop(chat: Chat): void {
  aborts.get(chat.peek().id)?.abort();
}

export function ask(chat: Chat, text: string, compare = false): void {
  const question: Question = { id: newId(), role: "user", content: text, parent: chat.peek().leaf, created: Date.now() };
  askIn(chat, question, compare);
}

/** The question anew, edited, as a second version beside the first. */
export function edit(chat: Chat, question: Question, text: string): void {
  askIn(chat, { ...question, id: newId(), content: text, created: Date.now() }, false);
}

function askIn(chat: Chat, question: Question, compare: boolean): void {
  if (busy.peek().has(chat.peek().id)) return;
  update(chat, (c) => {
    const title = c.named || c.title ? c.title : titleFrom(question.content);
    return { ...withTurn(c, question), title };
  });
  raise(chat);
  answer(chat, question, compare);
}

/** Another answer to the same question, beside the first; one without a word is replaced. */
export function regenerate(chat: Chat, reply: Reply, compare = false): void {
  const question = chat.peek().nodes[reply.parent ?? ""];
  if (question?.role !== "user" || busy.peek().has(chat.peek().id)) return;
  const empty = !reply.answer.content && !reply.plain?.content;
  if (empty) update(chat, (c) => without(c, reply.id));
  answer(chat, question, compare);
}

/** A question whose answer never began, after a crash, gets one. */
export function answer(chat: Chat, question: Question, compare: boolean): void {
  const { id } = chat.peek();
  const reply: Reply = {
    id: newId(),
    role: "assistant",
    parent: question.id,
    created: Date.now(),
    answer: { content: "", state: "streaming" },
  };
  update(chat, (c) => withTurn(c, reply));
  const abort = new AbortController();
  aborts.set(id, abort);
  void whileBusy(id, async () => {
    await Promise.race([learnt(), aborted(abort.signal)]); // asked at once, it is still steered as this page is set
    await answerIn(chat, reply, compare, abort.signal);
    aborts.delete(id);
    if (current.peek() === chat) announcement.value = `Answer ${stateOf(chat.peek(), reply.id)}.`;
  });
}

async function answerIn(chat: Chat, reply: Reply, compare: boolean, abort: AbortSignal): Promise<void> {
  const ours = steering();
  const least = leastSteering();
  if (compare && sameSteering(ours, least)) {
    compare = false;
    toast(least ? "Nothing to compare: this server requires just what is set." : "Nothing to compare: no profile is on.");
  }
  const begun: Answer = { ...reply.answer, kinds: kinds() };
  const answers = { answer: { ...begun, steering: ours }, ...(compare && { plain: { ...begun, steering: least } }) };
  update(chat, (c) => changed(c, reply.id, (r) => ({ ...r, ...answers })));
  const request = requestFor(chat.peek(), reply, compare);
  const run = (which: "answer" | "plain", from: Answer): Promise<void> =>
    one(request, from, abort, (now) => update(chat, (c) => changed(c, reply.id, (r) => ({ ...r, [which]: now }))));
  await Promise.all(Object.entries(answers).map(([which, from]) => run(which as "answer" | "plain", from)));
}

function sameSteering(a: SteeringRequest | false | undefined, b: SteeringRequest | false): boolean {
  return JSON.stringify(a || false) === JSON.stringify(b);
}

function stateOf(chat: Conversation, id: string): string {
  const turn = chat.nodes[id];
  const state = turn?.role === "assistant" ? turn.answer.state : "done";
  return { done: "complete", stopped: "stopped", interrupted: "interrupted", error: "failed", streaming: "" }[state];
}

function requestFor(chat: Conversation, reply: Reply, compare: boolean): ChatRequest {
  const set = { ...NO_SAMPLING, ...sampling.peek() };
  // Two answers can be compared only if they draw the same random numbers.
  if (compare) set.seed ??= crypto.getRandomValues(new Uint32Array(1))[0]! >>> 1;
  const values = Object.fromEntries(Object.entries(set).filter(([, value]) => value !== null));
  return { model: model.peek()?.id, messages: messages(chat, path(chat, reply.parent)), ...values };
}

/** What the model is told. Questions that got no word of an answer are joined: templates want the roles in turn. */
export function messages(chat: Conversation, turns: Turn[]): ChatMessage[] {
  const list: ChatMessage[] = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  for (const turn of turns) {
    const content = turn.role === "user" ? turn.content : chosen(turn).content;
    const last = list.at(-1);
    if (turn.role === "assistant" && !content) continue;
    if (turn.role === "user" && last?.role === "user") last.content += `\n\n${content}`;
    else list.push({ role: turn.role, content });
  }
  return list;
}

/** Streams one answer into `put`; every way it can end is a state of the answer, never an exception. */
async function one(
  request: ChatRequest,
  begun: Answer,
  abort: AbortSignal,
  put: (answer: Answer) => void,
): Promise<void> {
  let now = begun;
  let pending: ReturnType<typeof setTimeout> | undefined;
  const flush = (): void => {
    clearTimeout(pending);
    pending = undefined;
    put(now);
  };
  const change = (part: Partial<Answer>): void => {
    now = { ...now, ...part };
    pending ??= setTimeout(flush, DRAW_EVERY);
  };
  for (let tries = 1; ; tries++) {
    let first = 0;
    try {
      for await (const event of stream({ ...request, steering: begun.steering }, abort)) {
        if (event.decisions) change({ decisions: decisionsOf(event.decisions), error: undefined });
        if (event.text) {
          first ||= performance.now();
          change({ content: now.content + event.text, seconds: (performance.now() - first) / 1000 });
        }
        if (event.finish) change({ finish: event.finish });
        if (event.usage) change({ usage: event.usage });
      }
      now = { ...now, state: "done", error: undefined };
    } catch (error) {
      if (abort.aborted) now = { ...now, state: "stopped", error: undefined };
      else if (mayWait(error) && tries <= WAIT_AT_MOST && !now.content) {
        change({ error: `${error.message} Trying again in ${error.retryAfter} s.` });
        await pause(error.retryAfter * 1000, abort);
        if (!abort.aborted) continue;
        now = { ...now, state: "stopped", error: undefined };
      } else now = failed(now, error);
    }
    flush();
    return;
  }
}

function mayWait(error: unknown): error is ServerError & { retryAfter: number } {
  if (!(error instanceof ServerError) || ![429, 503].includes(error.status)) return false;
  return error.retryAfter !== undefined && error.retryAfter <= 60;
}

// A page that is left breaks its own streams, and must not blame the server.
let leaving = false;
addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => (leaving = false), 2000);
});

function failed(answer: Answer, error: unknown): Answer {
  if (leaving) return cutOff(answer);
  if (error instanceof ServerError && error.status === 0) noticeAway();
  const message = error instanceof Error ? error.message : String(error);
  const plain = error instanceof ServerError ? message : `The server's answer was not understood (${message}).`;
  return { ...answer, state: answer.content ? "interrupted" : "error", error: plain };
}

function aborted(abort: AbortSignal): Promise<void> {
  return new Promise((resolve) => abort.addEventListener("abort", () => resolve(), { once: true }));
}

function pause(ms: number, abort: AbortSignal): Promise<void> {
  return Promise.race([new Promise<void>((resolve) => setTimeout(resolve, ms)), aborted(abort)]);
}

/** Whether a message can be sent now. */
export function canSend(chat: Chat): boolean {
  return !busy.value.has(chat.value.id) && !["loading", "stalled", "failed"].includes(reach.value);
}
