// Beside a decision: that it was wrong. The server keeps it as `/wrong` in a chat does, with the conversation.

import { useState } from "preact/hooks";
import { type Decision, send, type Should } from "../api";
import { messages } from "../chat";
import { questionOpened } from "../gate";
import { model, profiles } from "../server";
import { type Chat, update } from "../store";
import { toast } from "../toast";
import { changed, type Correction, path } from "../tree";

/** The answer that a decision was made for. */
export interface Of {
  chat: Chat;
  reply: string;
}

interface Wrong extends Of {
  decision: Decision;
  kept: Correction | undefined;
}

const PATH = "/v1/steering/corrections";

/** The other one than what the question's gate did; null where the server keeps no correction of it. */
export function otherwise(decision: Decision): Should | null {
  const profile = profiles.value.find((p) => p.name === decision.profile);
  if (!profile?.takes_corrections) return null;
  // Refused for its kind, while the gate was shut: no gate would decide that otherwise.
  if (decision.action === "refuse" && !questionOpened(decision)) return null;
  return questionOpened(decision) ? "leave" : "steer";
}

const words = (should: Should): string => (should === "steer" ? "should have been steered" : "should not have been steered");

function put({ chat, reply, decision }: Wrong, correction: Correction | null): void {
  update(chat, (c) =>
    changed(c, reply, (r) => {
      const { [decision.profile]: _, ...others } = r.answer.wrong ?? {};
      const wrong = correction ? { ...others, [decision.profile]: correction } : others;
      return { ...r, answer: { ...r.answer, wrong } };
    }),
  );
}

/** Does what the server has to do, once at a time; what it refuses is told. */
function useServer(): [boolean, (work: () => Promise<void>) => Promise<void>] {
  const [waits, setWaits] = useState(false);
  const run = async (work: () => Promise<void>) => {
    setWaits(true);
    try {
      await work();
    } catch (error) {
      toast(error instanceof Error ? error.message : String(error));
    } finally {
      setWaits(false);
    }
  };
  return [waits, run];
}

/** Asks for nothing but the one click: what should have been done is the other one. */
export function Keep({ should, onDone, ...wrong }: Wrong & { should: Should; onDone: () => void }) {
  const [waits, run] = useServer();
  const { chat, reply, decision } = wrong;
  const keep = () =>
    run(async () => {
      const now = chat.peek();
      const said = messages(now, path(now, now.nodes[reply]?.parent ?? null));
      const body = { model: model.peek()?.id, messages: said, profile: decision.profile, should };
      const { id } = await send<{ id: string }>("POST", PATH, body);
      put(wrong, { id: String(id), should });
      onDone();
    });
  return (
    <div class="wrong" role="group" aria-label={`A correction of ${decision.profile}`}>
      <p>
        This question {words(should)}?{" "}
        <span class="note">
          It is written, with the conversation before it, to a file on the server's machine, and goes nowhere else.
        </span>
      </p>
      <div class="row">
        <button type="button" class="plain" disabled={waits} onClick={() => void keep()}>
          Keep as a correction
        </button>
        <button type="button" class="plain" onClick={onDone}>
          Cancel
        </button>
      </div>
    </div>
  );
}

export function Kept({ kept, ...rest }: Wrong & { kept: Correction }) {
  const [waits, run] = useServer();
  const undo = () =>
    run(async () => {
      await send("DELETE", `${PATH}/${encodeURIComponent(kept.id)}`);
      put({ kept, ...rest }, null);
    });
  return (
    <p class="wrong note" role="status">
      Kept as correction {kept.id}: {words(kept.should)}. Take it in with{" "}
      <code>finesteer-local profiles refit {rest.decision.profile}</code>, then start the server again.{" "}
      <button type="button" class="link" disabled={waits} onClick={() => void undo()}>
        Undo
      </button>
    </p>
  );
}
