// The conversations.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon } from "./icons";
import { Action, saveFile } from "./parts";
import { busy, type Chat, chats, currentId, newChat, remove, rename, show, titleOf } from "./store";
import { asMarkdown, path } from "./tree";
import { drawerOpen, focusComposer, narrow } from "./ui";

const MANY = 8; // conversations from which on a search is worth its room

function matches(chat: Chat, words: string): boolean {
  if (!words) return true;
  const text = [
    titleOf(chat.value),
    ...path(chat.value).map((t) => (t.role === "user" ? t.content : t.answer.content)),
  ];
  return text.join("\n").toLowerCase().includes(words);
}

const DAY = 86_400_000;

function age(updated: number): string {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY) return "Yesterday";
  if (updated >= today - 7 * DAY) return "This week";
  return "Earlier";
}

function fileName(chat: Chat, end: string): string {
  const name = titleOf(chat.peek())
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 50);
  return `${name || "conversation"}.${end}`;
}

function Renamer({ chat, onDone }: { chat: Chat; onDone: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => input.current?.select(), []);
  const done = (title: string | null) => {
    if (title !== null) rename(chat, title);
    onDone();
  };
  return (
    <input
      class="rename"
      aria-label="New name"
      defaultValue={titleOf(chat.peek())}
      ref={input}
      onBlur={(event) => done(event.currentTarget.value)}
      onKeyDown={(event) => {
        if (event.key === "Enter") done(event.currentTarget.value);
        else if (event.key === "Escape") done(null);
        else return;
        event.preventDefault();
        event.stopPropagation();
      }}
    />
  );
}

function Item({ chat }: { chat: Chat }) {
  const [renaming, setRenaming] = useState(false);
  const [menu, setMenu] = useState(false);
  const { id, leaf } = chat.value;
  const isCurrent = currentId.value === id;
  const title = titleOf(chat.value);
  const open = () => {
    show(chat);
    drawerOpen.value = false;
    focusComposer();
  };
  if (renaming) {
    return (
      <li>
        <Renamer chat={chat} onDone={() => setRenaming(false)} />
      </li>
    );
  }
  const choose = (run: () => void) => () => {
    setMenu(false);
    run();
  };
  const json = () => JSON.stringify({ conversations: [chat.peek()] }, null, 2);
  return (
    <li
      class={isCurrent ? "current" : undefined}
      onKeyDown={(event) => event.key === "Escape" && menu && (event.stopPropagation(), setMenu(false))}
    >
      <div class="item">
        <button type="button" class="title" aria-current={isCurrent ? "page" : undefined} onClick={open}>
          {busy.value.has(id) && <span class="dot" aria-label="answering" role="img" />}
          {title}
        </button>
        <Action icon="more" label={`Actions for ${title}`} expanded={menu} onClick={() => setMenu(!menu)} />
      </div>
      {menu && (
        <div class="menu">
          <button type="button" onClick={choose(() => setRenaming(true))}>
            Rename
          </button>
          {leaf && (
            <>
              <button
                type="button"
                onClick={choose(() => saveFile(fileName(chat, "md"), asMarkdown(chat.peek()), "text/markdown"))}
              >
                Export as Markdown
              </button>
              <button
                type="button"
                onClick={choose(() => saveFile(fileName(chat, "json"), json(), "application/json"))}
              >
                Export as JSON
              </button>
            </>
          )}
          <button type="button" disabled={busy.value.has(id)} onClick={choose(() => remove(chat))}>
            Delete
          </button>
        </div>
      )}
    </li>
  );
}

export function Sidebar() {
  const nav = useRef<HTMLElement>(null);
  useEffect(() => {
    if (!narrow.value) return;
    nav.current?.querySelector("button")?.focus();
    return () => document.querySelector<HTMLElement>(".top button")?.focus();
  }, [narrow.value]);
  const [search, setSearch] = useState("");
  const words = search.trim().toLowerCase();
  const found = chats.value.filter((chat) => (chat.value.leaf || chat.value.named) && matches(chat, words));
  const groups = Map.groupBy ? Map.groupBy(found, (chat) => age(chat.value.updated)) : new Map([["", found]]);
  return (
    <nav ref={nav} class="sidebar" aria-label="Conversations" id="sidebar">
      <header>
        <span class="brand">FineSteer Local</span>
        {narrow.value && <Action icon="close" label="Close the list" onClick={() => (drawerOpen.value = false)} />}
      </header>
      <button
        type="button"
        class="new"
        title="New conversation (Alt+N)"
        onClick={() => {
          newChat();
          drawerOpen.value = false;
          focusComposer();
        }}
      >
        <Icon name="plus" /> New conversation
      </button>
      {chats.value.length >= MANY && (
        <input
          type="search"
          placeholder="Search"
          aria-label="Search conversations"
          value={search}
          onInput={(event) => setSearch(event.currentTarget.value)}
        />
      )}
      <div class="list">
        {[...groups].map(([name, list]) => (
          <section key={name}>
            {name && <h2>{name}</h2>}
            <ul>
              {list.map((chat) => (
                <Item key={chat.peek().id} chat={chat} />
              ))}
            </ul>
          </section>
        ))}
        {words && !found.length && <p class="note">Nothing found.</p>}
      </div>
    </nav>
  );
}
