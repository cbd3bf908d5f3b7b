// The list of shortcuts, and the question for the API key.

import { useState } from "preact/hooks";
import { keyWanted } from "./key";
import { Modal } from "./parts";
import { shortcutsOpen } from "./ui";

const SHORTCUTS: [keys: string[], what: string][] = [
  [["Enter"], "Send"],
  [["Shift", "Enter"], "New line"],
  [["Ctrl", "Enter"], "Send and compare"],
  [["Esc"], "Stop the answer; close what is open"],
  [["↑"], "Edit the last question, where the message box is empty"],
  [["Alt", "R"], "Answer again"],
  [["Alt", "C"], "Compare steered and unsteered"],
  [["Alt", "S"], "Steering"],
  [["Alt", "G"], "Gate over the conversation"],
  [["Alt", ","], "Settings"],
  [["Alt", "N"], "New conversation"],
  [["Alt", "↑"], "Previous conversation"],
  [["Alt", "↓"], "Next conversation"],
  [["Alt", "B"], "List of conversations"],
  [["/"], "To the message box"],
  [["?"], "These shortcuts"],
];

export function Shortcuts() {
  if (!shortcutsOpen.value) return null;
  return (
    <Modal title="Shortcuts" onClose={() => (shortcutsOpen.value = false)}>
      <dl class="shortcuts">
        {SHORTCUTS.map(([keys, what]) => (
          <div>
            <dt>
              {keys.map((key) => (
                <kbd>{key}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Modal>
  );
}

function KeyForm({ wrong, answer }: { wrong: boolean; answer: (key: string) => void }) {
  const [key, setKey] = useState("");
  const bad = /[^\x21-\x7e]/.test(key.trim());
  const submit = (event: Event) => {
    event.preventDefault();
    if (key.trim() && !bad) answer(key.trim());
  };
  return (
    <form class="stack" onSubmit={submit}>
      <p>{wrong ? "The server did not accept this key." : "This server was started with a key."}</p>
      <label class="stacked">
        API key
        <input
          type="password"
          autocomplete="off"
          autoFocus
          value={key}
          aria-invalid={bad}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
      </label>
      <p class="note">{bad ? "A key has letters, digits and signs only." : "Kept until this tab is closed."}</p>
      <div class="row end">
        <button type="submit" class="main" disabled={!key.trim() || bad}>
          Use key
        </button>
      </div>
    </form>
  );
}

export function KeyDialog() {
  const wanted = keyWanted.value;
  if (!wanted) return null;
  return (
    <Modal title="API key" onClose={() => wanted.answer("")}>
      <KeyForm wrong={wanted.wrong} answer={wanted.answer} />
    </Modal>
  );
}
