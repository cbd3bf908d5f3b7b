// The conversations: in memory as signals, in the browser's IndexedDB for good.

import { computed, type Signal, signal } from "@preact/signals";
import { type IDBPDatabase, openDB } from "idb";
import { conversationOf } from "./check";
import { toast } from "./toast";
import { type Conversation, emptyConversation, interrupted, newId } from "./tree";
import { defaultSystem } from "./settings";

const LEFT = "finesteer.left.";
const SAVE_EVERY = 300; // ms; what a crash of the browser can cost while an answer streams

export type Chat = Signal<Conversation>;

/** Newest first; a conversation without turns is in memory only. */
export const chats = signal<Chat[]>([]);
export const currentId = signal<string | null>(null);
export const current = computed<Chat | null>(() => chats.value.find((c) => c.peek().id === currentId.value) ?? null);
export const ready = signal(false);

let database: IDBPDatabase | null = null;
const unsaved = new Map<string, ReturnType<typeof setTimeout>>();
const others = "BroadcastChannel" in window ? new BroadcastChannel("finesteer") : null;

/** Answers under way in this tab, by conversation; the others' are theirs to end. */
export const busy = signal<ReadonlySet<string>>(new Set());

export async function openStore(): Promise<void> {
  let kept: Conversation[] = [];
  try {
    database = await openDB("finesteer", 1, {
      upgrade: (db) => void db.createObjectStore("conversations", { keyPath: "id" }),
    });
    const all: unknown[] = await database.getAll("conversations");
    kept = all.map(conversationOf).filter((chat) => chat !== null);
  } catch {
    database = null;
    toast("This browser keeps nothing for this page: conversations are lost when it closes.");
  }
  const left = takeLeft().filter((chat) => (kept.find((other) => other.id === chat.id)?.updated ?? 0) <= chat.updated);
  const known = kept;
  kept = [...left, ...kept.filter((chat) => !left.some((other) => other.id === chat.id))];
  const streaming = await streamingElsewhere();
  chats.value = kept
    .sort((a, b) => b.updated - a.updated)
    .map((chat) => signal(streaming.has(chat.id) ? chat : interrupted(chat)));
  for (const chat of chats.value) if (!known.includes(chat.value)) save(chat);
  const last = location.hash.slice(1);
  if (kept.some((chat) => chat.id === last)) currentId.value = last;
  else newChat();
  ready.value = true;
}

/** Conversations that another tab is getting an answer for: it holds a lock while it does. */
async function streamingElsewhere(): Promise<Set<string>> {
  const state = await navigator.locks?.query().catch(() => undefined);
  return new Set((state?.held ?? []).map((lock) => (lock.name ?? "").replace(/^finesteer\./, "")));
}

/** Runs `work` with the conversation marked as busy, here and for other tabs. */
export async function whileBusy(id: string, work: () => Promise<void>): Promise<void> {
  busy.value = new Set(busy.value).add(id);
  try {
    if (navigator.locks) await navigator.locks.request(`finesteer.${id}`, { mode: "shared" }, work);
    else await work();
  } finally {
    const rest = new Set(busy.value);
    rest.delete(id);
    busy.value = rest;
  }
}

export function newChat(): Chat {
  const blank = chats.value.find((chat) => !chat.value.leaf && !chat.value.named);
  const chat = blank ?? signal(emptyConversation(defaultSystem.value));
  if (!blank) chats.value = [chat, ...chats.value];
  show(chat);
  return chat;
}

export function show(chat: Chat): void {
  currentId.value = chat.peek().id;
  history.replaceState(null, "", `#${chat.peek().id}`);
}

/** Changes a conversation and keeps it, now or shortly. */
export function update(chat: Chat, change: (conversation: Conversation) => Conversation): void {
  chat.value = change(chat.peek());
  save(chat);
}

/** To the top of the list, where something new was asked. */
export function raise(chat: Chat): void {
  chats.value = [chat, ...chats.value.filter((other) => other !== chat)];
}

function save(chat: Chat): void {
  const { id } = chat.peek();
  if (!unsaved.has(id)) unsaved.set(id, setTimeout(() => void write(chat), SAVE_EVERY));
}

async function write(chat: Chat): Promise<void> {
  const { id } = chat.peek();
  clearTimeout(unsaved.get(id));
  unsaved.delete(id);
  if (!database || !chats.peek().includes(chat)) return;
  try {
    await database.put("conversations", chat.peek());
    if (!unsaved.has(id)) localStorage.removeItem(LEFT + id);
    others?.postMessage(id);
  } catch {
    toast("The browser could not keep this conversation: its storage may be full. Export it, or delete older ones.");
  }
}

/**
 * The page may be gone before IndexedDB has written: what is unsaved then goes to localStorage, which writes at once,
 * and from there to its place when the page is opened again.
 */
function leave(): void {
  for (const chat of chats.peek()) {
    const { id, leaf } = chat.peek();
    if (!leaf || !unsaved.has(id)) continue;
    try {
      localStorage.setItem(LEFT + id, JSON.stringify(chat.peek()));
    } catch {
      // full: what was written last has to do
    }
    void write(chat);
  }
}

/** What `leave` left behind, taken up. */
function takeLeft(): Conversation[] {
  const found: Conversation[] = [];
  try {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(LEFT))) {
      const chat = conversationOf(parsed(localStorage.getItem(key)));
      if (chat) found.push(chat);
      localStorage.removeItem(key);
    }
  } catch {
    // no storage, nothing left
  }
  return found;
}

function parsed(text: string | null): unknown {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}

addEventListener("pagehide", leave);
addEventListener("visibilitychange", () => document.hidden && leave());

// Another tab changed or deleted a conversation.
others?.addEventListener("message", async ({ data: id }: MessageEvent<string>) => {
  if (!database || busy.peek().has(id) || unsaved.has(id)) return;
  const kept = conversationOf(await database.get("conversations", id));
  const known = chats.peek().find((chat) => chat.peek().id === id);
  if (kept && known) known.value = kept;
  else if (kept) chats.value = [signal(kept), ...chats.peek()];
  else if (known) drop(known);
});

function drop(chat: Chat): void {
  chats.value = chats.peek().filter((other) => other !== chat);
  if (currentId.peek() !== chat.peek().id) return;
  const next = chats.peek()[0];
  if (next) show(next);
  else newChat();
}

export function remove(chat: Chat): void {
  const place = chats.peek().indexOf(chat);
  const shown = current.peek() === chat;
  drop(chat);
  void forget(chat.peek().id);
  toast(`Deleted “${titleOf(chat.peek())}”.`, {
    label: "Undo",
    run: () => {
      chats.value = chats.peek().toSpliced(place, 0, chat);
      if (shown) show(chat);
      save(chat);
    },
  });
}

async function forget(id: string): Promise<void> {
  clearTimeout(unsaved.get(id));
  unsaved.delete(id);
  await database?.delete("conversations", id);
  others?.postMessage(id);
}

export async function removeAll(): Promise<void> {
  const gone = chats.peek().map((chat) => chat.peek().id);
  chats.value = [];
  newChat();
  for (const id of gone) await forget(id);
}

export function rename(chat: Chat, title: string): void {
  const named = title.trim().slice(0, 200);
  if (named) update(chat, (c) => ({ ...c, title: named, named: true }));
}

export function titleOf(chat: Conversation): string {
  return chat.title || "New conversation";
}

/** Adds conversations of an exported file; returns how many. Known ones come in beside what is there. */
export function importChats(text: string): number {
  const data: unknown = JSON.parse(text);
  const list: unknown[] = Array.isArray((data as { conversations?: unknown }).conversations)
    ? (data as { conversations: unknown[] }).conversations
    : [data];
  const found = list.map(conversationOf).filter((chat) => chat !== null);
  const known = new Set(chats.peek().map((chat) => chat.peek().id));
  const added = found.map((chat) => signal(interrupted(known.has(chat.id) ? { ...chat, id: newId() } : chat)));
  chats.value = [...added, ...chats.peek()];
  added.forEach(save);
  return added.length;
}
