// The page as a whole.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { announcement } from "./chat";
import { Composer } from "./chat/composer";
import { Thread } from "./chat/thread";
import { KeyDialog, Shortcuts } from "./dialogs";
import { GatePanel } from "./panels/gate";
import { SettingsPanel } from "./panels/settings";
import { SteeringPanel } from "./panels/steering";
import { Action } from "./parts";
import { look, model, nextTry, reach } from "./server";
import { type Chat, current, titleOf } from "./store";
import { Sidebar } from "./sidebar";
import { dismiss, shown } from "./toast";
import { closePanel, drawerOpen, narrow, type PanelName, panel, sidebarShown, togglePanel, toggleSidebar } from "./ui";

const PANELS: Record<PanelName, { title: string; body: (props: { chat: Chat }) => preact.JSX.Element }> = {
  steering: { title: "Steering", body: SteeringPanel },
  gate: { title: "Gate over the conversation", body: GatePanel },
  settings: { title: "Settings", body: SettingsPanel },
};

function Panel({ name, chat }: { name: PanelName; chat: Chat }) {
  const heading = useRef<HTMLHeadingElement>(null);
  const { title, body: Body } = PANELS[name];
  useLayoutEffect(() => heading.current?.focus(), [name]);
  return (
    <aside class="panel" aria-label={title}>
      <header>
        <h2 ref={heading} tabIndex={-1}>
          {title}
        </h2>
        <Action icon="close" label={`Close ${title.toLowerCase()}`} keys="Esc" onClick={closePanel} />
      </header>
      <div class="panel-body">
        <Body chat={chat} />
      </div>
    </aside>
  );
}

const TROUBLES: Partial<Record<typeof reach.value, string>> = {
  loading: "The server is loading its model.",
  stalled: "The server's model does not move, and answers nothing. It may go on by itself; if not, the server ends.",
  failed: "The server's model has failed, and the server ends. Start it again.",
};

/** Quiet, and gone by itself as soon as the server answers. */
function Banner() {
  const [now, setNow] = useState(Date.now());
  const away = reach.value === "away";
  useEffect(() => {
    if (!away) return;
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, [away]);
  const trouble = TROUBLES[reach.value];
  if (trouble) {
    return (
      <p class="banner" role="status">
        {trouble}
      </p>
    );
  }
  if (!away) return null;
  const seconds = Math.max(1, Math.ceil((nextTry.value - now) / 1000));
  return (
    <div class="banner">
      <span role="status">The server cannot be reached. Your conversations are safe in this browser.</span>
      <span>Trying again in {seconds} s.</span>
      <button type="button" class="link" onClick={() => void look()}>
        Try now
      </button>
    </div>
  );
}

function Toast() {
  const toast = shown.value;
  return (
    <div class="toast-place" role="status">
      {toast && (
        <div class="toast">
          <span>{toast.text}</span>
          {toast.action && (
            <button type="button" class="link" onClick={() => (toast.action?.run(), dismiss())}>
              {toast.action.label}
            </button>
          )}
          <Action icon="close" label="Dismiss" onClick={dismiss} />
        </div>
      )}
    </div>
  );
}

function Header({ chat }: { chat: Chat }) {
  const open = panel.value;
  return (
    <header class="top">
      <Action icon="menu" label="Conversations" keys="Alt+B" expanded={sidebarShown()} onClick={toggleSidebar} />
      <h1>{titleOf(chat.value)}</h1>
      <span class="model">{model.value?.id}</span>
      <Action icon="sliders" label="Steering" keys="Alt+S" expanded={open === "steering"} onClick={() => togglePanel("steering")} />
      <Action icon="chart" label="Gate over the conversation" keys="Alt+G" expanded={open === "gate"} onClick={() => togglePanel("gate")} />
      <Action icon="gear" label="Settings" keys="Alt+," expanded={open === "settings"} onClick={() => togglePanel("settings")} />
    </header>
  );
}

export function App() {
  const chat = current.value;
  if (!chat) return null;
  const list = sidebarShown();
  const covered = narrow.value && (list || panel.value !== null);
  return (
    <div class="app">
      {list && <Sidebar />}
      <main inert={covered}>
        <Header chat={chat} />
        <Banner />
        <Thread key={chat.peek().id} chat={chat} />
        <Composer chat={chat} />
      </main>
      {covered && <div class="backdrop" onClick={() => (list ? (drawerOpen.value = false) : closePanel())} />}
      {panel.value && <Panel name={panel.value} chat={chat} />}
      <Shortcuts />
      <KeyDialog />
      <Toast />
      <div class="sr-only" role="status">
        {announcement.value}
      </div>
    </div>
  );
}
