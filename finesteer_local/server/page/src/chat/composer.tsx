// Where a question is written.

import { signal } from "@preact/signals";
import { ask, canSend, stop } from "../chat";
import { Icon } from "../icons";
import { useGrowing } from "../parts";
import { model, settings } from "../server";
import { busy, type Chat } from "../store";
import { chosen, lastReply } from "../tree";
import { panel, shortcutsOpen, togglePanel } from "../ui";
import { editLast } from "./thread";

const DRAFTS = "finesteer.drafts";

function keptDrafts(): Record<string, string> {
  try {
    const drafts: unknown = JSON.parse(sessionStorage.getItem(DRAFTS) ?? "{}");
    return typeof drafts === "object" && drafts !== null ? (drafts as Record<string, string>) : {};
  } catch {
    return {};
  }
}

/** Unsent text by conversation: it survives a look at another one, and a reload. */
const drafts = signal(keptDrafts());

function setDraft(id: string, text: string): void {
  const { [id]: _, ...rest } = drafts.value;
  drafts.value = text ? { ...rest, [id]: text } : rest;
  try {
    sessionStorage.setItem(DRAFTS, JSON.stringify(drafts.value));
  } catch {
    // kept until the page closes
  }
}

export const draftOf = (chat: Chat): string => drafts.value[chat.value.id] ?? "";

function steered(): string {
  const on = settings.value.filter((s) => s.on);
  return on.length ? on.map((s) => `${s.profile.name} ${s.strength.toFixed(2)}`).join(", ") : "off";
}

function room(chat: Chat): string {
  const reply = lastReply(chat.value);
  const usage = reply && chosen(reply).usage;
  const context = model.value?.context;
  if (!usage || !context) return "";
  const used = usage.prompt_tokens + usage.completion_tokens;
  return `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
}

export function Composer({ chat }: { chat: Chat }) {
  const text = draftOf(chat);
  const area = useGrowing(text);
  const isBusy = busy.value.has(chat.value.id);
  const may = canSend(chat) && text.trim() !== "";

  const submit = (compare: boolean) => {
    if (!may) return;
    setDraft(chat.peek().id, "");
    ask(chat, text.trim(), compare);
  };
  const keys = (event: KeyboardEvent) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) submit(event.ctrlKey || event.metaKey);
    else if (event.key === "ArrowUp" && !text && !isBusy && lastReply(chat.peek())) editLast.run();
    else return;
    event.preventDefault();
  };

  return (
    <form class="composer" onSubmit={(event) => (event.preventDefault(), submit(false))}>
      <div class="field">
        <textarea
          id="composer"
          ref={area}
          rows={1}
          value={text}
          placeholder="Ask something"
          aria-label="Message"
          enterkeyhint="send"
          onInput={(event) => setDraft(chat.peek().id, event.currentTarget.value)}
          onKeyDown={keys}
        />
        {isBusy ? (
          <button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick={() => stop(chat)}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled={!may}>
            <Icon name="send" />
          </button>
        )}
      </div>
      <div class="under">
        <button
          type="button"
          class="plain small"
          aria-expanded={panel.value === "steering"}
          onClick={() => togglePanel("steering")}
        >
          <Icon name="sliders" /> Steering: {steered()}
        </button>
        <span class="room">{room(chat)}</span>
        <button type="button" class="plain small keys" onClick={() => (shortcutsOpen.value = true)}>
          Shortcuts <kbd>?</kbd>
        </button>
      </div>
    </form>
  );
}
