// Keys that work everywhere on the page. Plain keys only where nothing is being typed.

import { regenerate, stop } from "./chat";
import { busy, chats, current, newChat, show } from "./store";
import { lastReply } from "./tree";
import { closePanel, composer, drawerOpen, focusComposer, panel, shortcutsOpen, togglePanel, toggleSidebar } from "./ui";

function again(compare: boolean): void {
  const chat = current.peek();
  const reply = chat && lastReply(chat.peek());
  if (chat && reply) regenerate(chat, reply, compare);
}

function step(by: number): void {
  const at = chats.peek().findIndex((chat) => chat === current.peek());
  const next = chats.peek()[at + by];
  if (next) show(next);
}

/** By the key's place, not its letter: with Alt a Mac types another one. */
const WITH_ALT: Record<string, () => void> = {
  KeyN: () => (newChat(), focusComposer()),
  KeyS: () => togglePanel("steering"),
  KeyG: () => togglePanel("gate"),
  Comma: () => togglePanel("settings"),
  KeyB: toggleSidebar,
  KeyR: () => again(false),
  KeyC: () => again(true),
  ArrowUp: () => step(-1),
  ArrowDown: () => step(1),
};

function escape(): boolean {
  const chat = current.peek();
  if (drawerOpen.peek()) drawerOpen.value = false;
  else if (chat && busy.peek().has(chat.peek().id)) stop(chat);
  else if (panel.peek()) closePanel();
  else return false;
  return true;
}

const typing = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement && target.matches("input:not([type=range], [type=radio]), textarea, select");

export function onKey(event: KeyboardEvent): void {
  if (event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const plain = !event.ctrlKey && !event.metaKey;
  const run = event.altKey && plain ? WITH_ALT[event.code] : undefined;
  if (run) run();
  else if (event.key === "Escape") {
    if (!escape()) return;
  } else if (event.key === "?" && plain && !typing(event.target)) shortcutsOpen.value = true;
  else if (event.key === "/" && plain && !typing(event.target)) composer()?.focus();
  else return;
  event.preventDefault();
}
