// System prompt, sampling, appearance, and the conversations as files.

import { useRef } from "preact/hooks";
import { Icon } from "../icons";
import { saveFile } from "../parts";
import { model, models } from "../server";
import { defaultSystem, modelId, NO_SAMPLING, type Sampling, sampling, type Theme, theme } from "../settings";
import { busy, type Chat, chats, importChats, removeAll, update } from "../store";
import { toast } from "../toast";

interface Field {
  name: keyof Sampling;
  label: string;
  hint: string;
  min: number;
  max: number;
  step: number;
}

const FIELDS: Field[] = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: 0.1 },
  { name: "top_p", label: "Top-p", hint: "the likeliest tokens up to this share", min: 0, max: 1, step: 0.05 },
  { name: "max_tokens", label: "Max tokens", hint: "of one answer", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", label: "Seed", hint: "the same seed, the same answer", min: 0, max: 2 ** 31 - 1, step: 1 },
];

function NumberField({ field }: { field: Field }) {
  const set = (input: HTMLInputElement) => {
    const value = input.value === "" || !input.validity.valid ? null : input.valueAsNumber;
    sampling.value = { ...sampling.value, [field.name]: value };
  };
  const whole = field.step === 1;
  return (
    <label class="number-field">
      <span>
        {field.label}
        <small>{field.hint}</small>
      </span>
      <input
        type="number"
        inputMode={whole ? "numeric" : "decimal"}
        min={field.min}
        max={field.max}
        step={whole ? 1 : "any"}
        placeholder="default"
        defaultValue={sampling.peek()[field.name]?.toString() ?? ""}
        onInput={(event) => set(event.currentTarget)}
      />
    </label>
  );
}

function ThemeChoice() {
  const names: [Theme, string][] = [
    ["system", "System"],
    ["light", "Light"],
    ["dark", "Dark"],
  ];
  return (
    <fieldset class="segments">
      <legend>Appearance</legend>
      {names.map(([value, label]) => (
        <label>
          <input type="radio" name="theme" checked={theme.value === value} onChange={() => (theme.value = value)} />
          <span>{label}</span>
        </label>
      ))}
    </fieldset>
  );
}

function Files() {
  const input = useRef<HTMLInputElement>(null);
  const load = async (file: File | undefined) => {
    if (!file) return;
    try {
      const added = importChats(await file.text());
      toast(added ? `Imported ${added} ${added === 1 ? "conversation" : "conversations"}.` : "No conversation in this file.");
    } catch {
      toast("This file is not an export of this page.");
    }
    if (input.current) input.current.value = "";
  };
  const all = () => {
    const conversations = chats.peek().map((chat) => chat.peek());
    const day = new Date().toISOString().slice(0, 10);
    saveFile(`finesteer-${day}.json`, JSON.stringify({ conversations }, null, 2), "application/json");
  };
  const clear = () => {
    if (confirm("Delete all conversations in this browser? This cannot be undone.")) void removeAll();
  };
  return (
    <section aria-label="Conversations as files">
      <h3>Conversations</h3>
      <p class="note">They are kept in this browser and nowhere else.</p>
      <div class="row wrap">
        <button type="button" class="plain" onClick={all}>
          Export all
        </button>
        <button type="button" class="plain" onClick={() => input.current?.click()}>
          Import
        </button>
        <button type="button" class="plain" disabled={busy.value.size > 0} onClick={clear}>
          Delete all
        </button>
      </div>
      <input
        ref={input}
        type="file"
        accept="application/json,.json"
        hidden
        onChange={(event) => void load(event.currentTarget.files?.[0])}
      />
    </section>
  );
}

export function SettingsPanel({ chat }: { chat: Chat }) {
  const { system, id } = chat.value;
  const forAll = system !== "" && defaultSystem.value === system;
  const form = useRef<HTMLFormElement>(null);
  const reset = () => {
    sampling.value = NO_SAMPLING;
    for (const input of form.current?.querySelectorAll("input") ?? []) input.value = "";
  };
  return (
    <>
      <section aria-label="System prompt">
        <label class="stacked" for="system">
          System prompt of this conversation
        </label>
        <textarea
          id="system"
          key={id}
          rows={4}
          value={system}
          placeholder="none"
          onInput={(event) => {
            const text = event.currentTarget.value;
            if (forAll) defaultSystem.value = text;
            update(chat, (c) => ({ ...c, system: text }));
          }}
        />
        <label class="check">
          <input
            type="checkbox"
            checked={forAll}
            disabled={!system}
            onChange={(event) => (defaultSystem.value = event.currentTarget.checked ? system : "")}
          />
          New conversations begin with it too
        </label>
      </section>
      <form ref={form} class="stack" aria-label="Sampling" onSubmit={(event) => event.preventDefault()}>
        <div class="row">
          <h3>Sampling</h3>
          <button type="button" class="link" onClick={reset}>
            Server's defaults
          </button>
        </div>
        {FIELDS.map((field) => (
          <NumberField key={field.name} field={field} />
        ))}
      </form>
      {models.value.length > 1 && (
        <label class="stacked">
          Model
          <span class="select">
            <select value={model.value?.id} onChange={(event) => (modelId.value = event.currentTarget.value)}>
              {models.value.map((m) => (
                <option value={m.id}>{m.id}</option>
              ))}
            </select>
            <Icon name="down" />
          </span>
        </label>
      )}
      <ThemeChoice />
      <Files />
    </>
  );
}
