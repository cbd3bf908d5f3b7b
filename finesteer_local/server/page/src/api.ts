// The server's interface: its shapes, its errors and its streams.

import { askForKey, apiKey, forgetKey } from "./key";

export interface Expert {
  name: string;
  weight: number;
}

export interface KindShare {
  name: string;
  probability: number;
}

/** What the gate on the answer found in it so far. */
export interface AnswerReading {
  action: string;
  threshold: number;
  score: number | null; // null before the first reading
  opened_at: number | null; // the answer's tokens then; null while it is shut
  taken_back: number;
}

export interface Decision {
  profile: string;
  g: number;
  open: boolean;
  score: number;
  threshold: number;
  strength: number;
  answer_strength: number;
  scope: string;
  gate_layer: number;
  layers: number[];
  experts?: Expert[];
  /** What is done: steer, refuse, report or leave; null while the gate is closed. */
  action?: string | null;
  kinds?: KindShare[];
  answer?: AnswerReading | null;
}

export type Should = "steer" | "leave";

export interface Profile {
  name: string;
  description: string;
  strength: number;
  scope: string;
  gate: { kind: string; layer: number; threshold: number };
  layers: number[];
  experts: string[];
  takes_corrections?: boolean;
  active: boolean;
  required: boolean;
}

export type Scope = "turn" | "prompt" | null;

export interface SteeringRequest {
  profiles: { name: string; strength: number }[];
  scope: Scope;
  explain?: boolean;
}

export interface SteeringState {
  profiles: { name: string; strength: number }[];
  scope: Scope;
  required: string[];
}

export interface Model {
  id: string;
  context?: number;
}

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

export interface ChatRequest {
  model?: string;
  messages: ChatMessage[];
  steering?: SteeringRequest | false;
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
  seed?: number;
}

export interface ChatEvent {
  decisions?: Decision[];
  text?: string;
  finish?: string;
  usage?: Usage;
}

/** What the server refused or could not do; `status` 0: it could not be reached, or went away. */
export class ServerError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly retryAfter?: number,
  ) {
    super(message);
  }
}

const AWAY = "The server cannot be reached.";
const WENT_AWAY = "The server went away before the answer was complete.";

async function errorOf(response: Response): Promise<ServerError> {
  let message = "";
  try {
    message = String((await response.json())?.error?.message ?? "");
  } catch {
    // not ours, a proxy's perhaps: the status has to do
  }
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  return new ServerError(
    message || `The server answered ${response.status} ${response.statusText}`.trim(),
    response.status,
    Number.isFinite(seconds) ? seconds : undefined,
  );
}

/** A request with the key; asks for it where the server wants one, as often as it is wrong. */
async function call(path: string, init: RequestInit = {}): Promise<Response> {
  for (;;) {
    const key = apiKey.value;
    const headers = new Headers(init.headers);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    if (init.body) headers.set("Content-Type", "application/json");
    let response: Response;
    try {
      response = await fetch(path, { ...init, headers, credentials: "same-origin", cache: "no-store" });
    } catch (error) {
      throw init.signal?.aborted ? error : new ServerError(AWAY, 0);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await errorOf(response);
    // Another request may have been given a new key while this one was under way.
    if (key !== apiKey.value) continue;
    forgetKey();
    if (!(await askForKey(key !== ""))) throw new ServerError("This server wants an API key.", 401);
  }
}

export async function get<T>(path: string): Promise<T> {
  return (await call(path)).json() as Promise<T>;
}

export async function send<T>(method: "POST" | "PUT" | "DELETE", path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  return (await call(path, { method, body: JSON.stringify(body), signal })).json() as Promise<T>;
}

const TOLD = ["ok", "loading", "stalled", "failed"] as const;
export type Health = (typeof TOLD)[number];

/** How the server is; null where none answers, or one that is about to stop. */
export async function health(): Promise<Health | null> {
  try {
    const { status } = await (await fetch("/health", { cache: "no-store" })).json();
    return TOLD.find((word) => word === status) ?? null;
  } catch {
    return null;
  }
}

/** The data of server-sent events, one a piece; an event of several data lines is joined as the standard says. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as unknown as TransformStream<Uint8Array, string>).getReader();
  let rest = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

/** Streams one answer. Ends normally only if the server said that the answer is complete. */
export async function* chat(request: ChatRequest, signal: AbortSignal): AsyncGenerator<ChatEvent> {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await call("/v1/chat/completions", { method: "POST", body, signal });
  if (!response.body) throw new ServerError(WENT_AWAY, 0);
  let complete = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(String(chunk.error.message ?? "The server failed."), 500);
      const choice = chunk.choices?.[0];
      if (choice?.finish_reason) complete = true;
      yield {
        decisions: chunk.steering?.decisions,
        text: choice?.delta?.content ?? undefined,
        finish: choice?.finish_reason ?? undefined,
        usage: chunk.usage ?? undefined,
      };
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    throw new ServerError(WENT_AWAY, 0);
  }
  if (!complete) throw new ServerError(WENT_AWAY, 0);
}
