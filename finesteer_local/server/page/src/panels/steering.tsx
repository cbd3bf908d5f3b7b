// Switches and strengths. They take effect on the next message; an answer under way keeps what it was asked with.

import { useState } from "preact/hooks";
import { type Decision, type Scope, send, ServerError } from "../api";
import { decisionsOf } from "../check";
import { draftOf } from "../chat/composer";
import { messages } from "../chat";
import { acted, kindsWords, reading, stateOf } from "../gate";
import { Icon } from "../icons";
import {
  followServer,
  follows,
  kinds,
  look,
  makeDefaults,
  readSteering,
  scope,
  type Setting,
  setProfile,
  setScope,
  settings,
  steering,
  steeringProblem,
} from "../server";
import type { Chat } from "../store";
import { toast } from "../toast";
import { path } from "../tree";

const STEP = 0.05;

const near = (a: number, b: number): boolean => Math.abs(a - b) < STEP / 10;

/** The slider's range: from nothing (or the minimum) to about twice the profile's own strength, which it can reach. */
function range({ profile, strength, minimum }: Setting): { min: number; max: number } {
  const rounded = (x: number) => Math.round(x * 1000) / 1000;
  const min = minimum || rounded(profile.strength % STEP > STEP - 1e-6 ? 0 : profile.strength % STEP);
  const steps = Math.ceil((Math.max(2 * profile.strength, 1.5 * minimum, strength, 1) - min) / STEP - 1e-6);
  return { min, max: rounded(min + steps * STEP) };
}

function experts(n: number): string {
  return n ? ` with ${n === 1 ? "one expert" : `${n} experts`}` : "";
}

function ProfileCard({ setting }: { setting: Setting }) {
  const { profile, on, strength, minimum } = setting;
  const { min, max } = range(setting);
  const own = profile.strength;
  const label = `strength-${profile.name}`;
  // The slider rounds; the strengths that the server knows are met exactly.
  const slide = (value: number) => {
    const exact = [own, minimum].find((known) => near(known, value));
    setProfile(profile.name, { strength: exact ?? value });
  };
  return (
    <section class={`card${on ? "" : " off"}`} aria-label={`Profile ${profile.name}`}>
      <div class="row">
        <h3>{profile.name}</h3>
        <button
          type="button"
          role="switch"
          class="switch"
          aria-checked={on}
          aria-label={`Steer with ${profile.name}`}
          aria-describedby={profile.required ? `${label}-must` : undefined}
          disabled={profile.required}
          onClick={() => setProfile(profile.name, { on: !on })}
        >
          <span />
        </button>
      </div>
      <p class="note">{profile.description}</p>
      <div class="row">
        <label for={label}>Strength</label>
        <output for={label}>{strength.toFixed(2)}</output>
      </div>
      <div class="slider">
        <input
          id={label}
          type="range"
          min={min}
          max={max}
          step={STEP}
          value={strength}
          disabled={!on}
          aria-valuetext={`${strength.toFixed(2)}${near(strength, own) ? ", the profile's own" : ""}`}
          onInput={(event) => slide(event.currentTarget.valueAsNumber)}
        />
        {own >= min && own <= max && (
          <span class="own" style={{ left: `${((own - min) / (max - min)) * 100}%` }} aria-hidden="true" />
        )}
      </div>
      <div class="row note">
        <span>the profile's own: {own.toFixed(2)}</span>
        {on && !near(strength, own) && own >= minimum && (
          <button type="button" class="link" onClick={() => setProfile(profile.name, { strength: own })}>
            Use its own
          </button>
        )}
      </div>
      {profile.required && (
        <p class="note must" id={`${label}-must`}>
          Required by this server: it cannot be switched off, nor set under {minimum.toFixed(2)}.
        </p>
      )}
      <p class="note facts-line">
        {profile.gate.kind === "always" ? "No gate" : `Gate ${profile.gate.kind}, layer ${profile.gate.layer}`}; steers {profile.layers.length === 1 ? "layer" : "layers"}{" "}
        {profile.layers.join(", ")}{experts(profile.experts.length)}
      </p>
    </section>
  );
}

/** What the gates say to the text in the message box, without an answer. */
function Try({ chat }: { chat: Chat }) {
  const [found, setFound] = useState<{ text: string; decisions?: Decision[]; problem?: string } | null>(null);
  const draft = draftOf(chat).trim();
  const wanted = steering();
  const run = async () => {
    const said = messages(chat.peek(), path(chat.peek()));
    const asked = messages({ ...chat.peek(), system: "" }, [
      { id: "", parent: null, created: 0, role: "user", content: draft },
    ]);
    try {
      const body = { messages: [...said, ...asked], steering: wanted };
      const answer = await send<{ decisions: unknown }>("POST", "/v1/steering/explain", body);
      setFound({ text: draft, decisions: decisionsOf(answer.decisions) });
    } catch (error) {
      setFound({ text: draft, problem: error instanceof ServerError ? error.message : "No decision came back." });
    }
  };
  return (
    <section class="try" aria-label="Try the gate">
      <h3>Try the gate</h3>
      <p class="note">Asks what the gates say to the text in the message box, without an answer.</p>
      <button type="button" class="plain" disabled={!draft || !wanted} onClick={() => void run()}>
        Read the draft
      </button>
      <div aria-live="polite">
        {found && found.text === draft && (
          <>
            {found.problem && <p class="problem">{found.problem}</p>}
            {found.decisions?.map((d) => (
              <p class="row">
                <span>{d.profile}</span>
                <span class={`state ${acted(d) ? "open" : "closed"}`}>
                  {stateOf(d)}
                  {d.action && d.kinds?.length ? `: ${kindsWords(d)}` : ""}
                  <span class="sr-only">, {reading(d, kinds()[d.profile]).text}</span>
                </span>
              </p>
            ))}
          </>
        )}
      </div>
    </section>
  );
}

export function SteeringPanel({ chat }: { chat: Chat }) {
  const share = async () => {
    try {
      await makeDefaults();
      toast("These are the server's defaults now, for every client that sets nothing itself.");
    } catch (error) {
      toast(error instanceof Error ? error.message : String(error));
    }
  };
  const reload = () => void readSteering().catch(() => look());
  return (
    <>
      <p class="note">Takes effect on the next message.</p>
      {steeringProblem.value && (
        <p class="problem">
          <span>{steeringProblem.value}</span>
          <button type="button" class="link" onClick={reload}>
            Retry
          </button>
        </p>
      )}
      {!settings.value.length && !steeringProblem.value && (
        <p class="note">The server knows no profile for this model. Start it with --profile, or train one.</p>
      )}
      {settings.value.map((setting) => (
        <ProfileCard key={setting.profile.name} setting={setting} />
      ))}
      {settings.value.length > 0 && (
        <>
          <label class="stacked">
            Scope: which tokens are steered
            <span class="select">
              <select
                value={scope.value ?? ""}
                onChange={(event) => setScope((event.currentTarget.value || null) as Scope)}
              >
                <option value="">each profile's own</option>
                <option value="turn">from the last question on</option>
                <option value="prompt">the whole conversation</option>
              </select>
              <Icon name="down" />
            </span>
          </label>
          <div class="row wrap">
            <button type="button" class="plain" disabled={follows.value} onClick={followServer}>
              Use the server's defaults
            </button>
            <button type="button" class="plain" disabled={follows.value} onClick={() => void share()}>
              Save as the server's defaults
            </button>
          </div>
          <Try chat={chat} />
        </>
      )}
    </>
  );
}
