// One question, one answer.

import { memo } from "preact/compat";
import { useLayoutEffect, useState } from "preact/hooks";
import { answer as answerAgain, edit, regenerate } from "../chat";
import { Markdown } from "../markdown";
import { Action, CopyButton, useGrowing } from "../parts";
import { type Chat, update } from "../store";
import { type Answer, goTo, type Question, type Reply, type Turn } from "../tree";
import { Decisions, type Of } from "./decision";

interface Place {
  chat: Chat;
  number: number; // of the question, from 1
  versions: Turn[];
  last: boolean;
  busy: boolean;
}

/** Versions are listed anew whenever the conversation changes; what they are seldom changes. */
function same<T extends Place>(a: T, b: T): boolean {
  const ids = (place: T) => place.versions.map((turn) => turn.id).join();
  const keys = Object.keys(b) as (keyof T)[];
  return ids(a) === ids(b) && keys.every((key) => key === "versions" || a[key] === b[key]);
}

function Versions({ chat, turn, versions, busy }: Pick<Place, "chat" | "versions" | "busy"> & { turn: Turn }) {
  if (versions.length < 2) return null;
  const at = versions.findIndex((version) => version.id === turn.id);
  const go = (to: Turn | undefined) => to && update(chat, (c) => goTo(c, to));
  return (
    <span class="versions" role="group" aria-label="Versions">
      <Action icon="left" label="Previous version" disabled={busy || at === 0} onClick={() => go(versions[at - 1])} />
      <span>
        {at + 1}/{versions.length}
      </span>
      <Action
        icon="right"
        label="Next version"
        disabled={busy || at === versions.length - 1}
        onClick={() => go(versions[at + 1])}
      />
    </span>
  );
}

function Editor({ text, onDone }: { text: string; onDone: (text: string | null) => void }) {
  const [value, setValue] = useState(text);
  const area = useGrowing(value);
  useLayoutEffect(() => area.current?.focus(), []);
  const keys = (event: KeyboardEvent) => {
    if (event.key === "Escape") onDone(null);
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) onDone(value);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return (
    <div class="editor">
      <textarea
        ref={area}
        value={value}
        rows={2}
        aria-label="Edit the question"
        onInput={(event) => setValue(event.currentTarget.value)}
        onKeyDown={keys}
      />
      <div class="row">
        <button type="button" class="plain" onClick={() => onDone(null)}>
          Cancel
        </button>
        <button type="button" class="main" disabled={!value.trim()} onClick={() => onDone(value)}>
          Send
        </button>
      </div>
    </div>
  );
}

export const QuestionView = memo(({ turn, editing, setEditing, ...place }: Place & {
  turn: Question;
  editing: boolean;
  setEditing: (id: string | null) => void;
}) => {
  const { chat, versions, busy, last } = place;
  const done = (text: string | null) => {
    setEditing(null);
    if (text !== null && text.trim() && text !== turn.content) edit(chat, turn, text);
  };
  return (
    <article class="question" aria-label={`Question ${place.number}`} id={`turn-${turn.id}`}>
      {editing ? (
        <Editor text={turn.content} onDone={done} />
      ) : (
        <>
          <div class="bubble">{turn.content}</div>
          <div class="actions">
            <Versions chat={chat} turn={turn} versions={versions} busy={busy} />
            <CopyButton text={turn.content} label="Copy question" />
            <Action icon="edit" label="Edit and send again" disabled={busy} onClick={() => setEditing(turn.id)} />
          </div>
          {last && !busy && (
            <p class="problem">
              <span>No answer yet.</span>
              <button type="button" class="link" onClick={() => answerAgain(chat, turn, false)}>
                Answer
              </button>
            </p>
          )}
        </>
      )}
    </article>
  );
}, same);

function figures({ usage, seconds, finish, state }: Answer): string {
  const parts: string[] = [];
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  if (usage && seconds && usage.completion_tokens > 1) {
    parts.push(`${Math.round((usage.completion_tokens - 1) / seconds).toLocaleString("en")} tokens/s`);
  }
  if (state === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut at the token limit");
  if (finish === "content_filter") parts.push("ended by the gate on the answer");
  return parts.join(" · ");
}

function AnswerBody({ answer, of, onRetry }: { answer: Answer; of?: Of; onRetry?: () => void }) {
  const streaming = answer.state === "streaming";
  return (
    <>
      <div class={`text${streaming ? " streaming" : ""}`}>
        {answer.content ? <Markdown text={answer.content} /> : streaming && <p class="reading">Reading…</p>}
      </div>
      {answer.error && (
        <p class="problem">
          <span>{answer.error}</span>
          {onRetry && !streaming && (
            <button type="button" class="link" onClick={onRetry}>
              Retry
            </button>
          )}
        </p>
      )}
      <Decisions answer={answer} {...of} />
    </>
  );
}

function Column({ name, note, answer, of, used, onUse, onRetry }: {
  name: string;
  note: string;
  answer: Answer;
  of?: Of;
  used: boolean;
  onUse: () => void;
  onRetry: () => void;
}) {
  return (
    <section class={`column${used ? " used" : ""}`} aria-label={name}>
      <header>
        <h3>{name}</h3>
        <span class="note">{note}</span>
      </header>
      <AnswerBody answer={answer} of={of} onRetry={onRetry} />
      <footer>
        <span class="figures">{figures(answer)}</span>
        <CopyButton text={answer.content} label={`Copy the ${name.toLowerCase()} answer`} />
        <button type="button" class="plain small" aria-pressed={used} onClick={onUse}>
          {used ? "Goes on with this" : "Go on with this"}
        </button>
      </footer>
    </section>
  );
}

function set(answer: Answer): string {
  if (!answer.steering) return answer.steering === false ? "no profile" : "";
  return answer.steering.profiles.map((p) => `${p.name} ${p.strength.toFixed(2)}`).join(", ");
}

export const ReplyView = memo(({ turn, ...place }: Place & { turn: Reply }) => {
  const { chat, versions, busy, last } = place;
  const { answer, plain } = turn;
  const choose = (goesOn: "plain" | undefined) =>
    update(chat, (c) => ({ ...c, nodes: { ...c.nodes, [turn.id]: { ...turn, goesOn } } }));
  const of = { chat, reply: turn.id };
  const again = () => regenerate(chat, turn, plain !== undefined);
  return (
    <article
      class={`answer${plain ? " compared" : ""}${last ? " last" : ""}`}
      aria-label={`Answer ${place.number}`}
      aria-busy={answer.state === "streaming"}
      id={`turn-${turn.id}`}
    >
      {plain ? (
        <div class="columns">
          <Column name="Steered" note={set(answer)} answer={answer} of={of} used={!turn.goesOn} onUse={() => choose(undefined)} onRetry={again} />
          <Column
            name={plain.steering ? "Least steered" : "Unsteered"}
            note={set(plain)}
            answer={plain}
            used={turn.goesOn === "plain"}
            onUse={() => choose("plain")}
            onRetry={again}
          />
        </div>
      ) : (
        <AnswerBody answer={answer} of={of} onRetry={again} />
      )}
      <div class="actions">
        <Versions chat={chat} turn={turn} versions={versions} busy={busy} />
        {!plain && answer.content && <CopyButton text={answer.content} label="Copy answer" />}
        <Action icon="again" label="Answer again" keys={last ? "Alt+R" : undefined} disabled={busy} onClick={again} />
        {last && (
          <Action
            icon="compare"
            label="Compare steered and unsteered"
            keys="Alt+C"
            disabled={busy}
            onClick={() => regenerate(chat, turn, true)}
          />
        )}
        {!plain && <span class="figures">{figures(answer)}</span>}
      </div>
    </article>
  );
}, same);
