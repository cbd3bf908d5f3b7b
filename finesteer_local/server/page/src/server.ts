// The server as the page knows it: there or away, its models, its profiles, its defaults.

import { computed, effect, signal } from "@preact/signals";
import { get, type Health, health, type Model, type Profile, send, ServerError, type SteeringRequest, type SteeringState } from "./api";
import { apiKey } from "./key";
import { choices, modelId, type SteeringChoice } from "./settings";

export const reach = signal<Health | "unknown" | "away">("unknown");
/** When the next try comes, ms since 1970, while the server is away. */
export const nextTry = signal(0);
export const models = signal<Model[]>([]);
export const profiles = signal<Profile[]>([]);
export const defaults = signal<SteeringState>({ profiles: [], scope: null, required: [] });
/** Whether the profiles were asked for since the page opened, whatever came of it. */
export const asked = signal(false);
/** Why the profiles could not be read, if so. */
export const steeringProblem = signal("");

export const model = computed<Model | undefined>(
  () => models.value.find((m) => m.id === modelId.value) ?? models.value[0],
);

const PATIENCE = [1, 2, 4, 8, 15]; // seconds between tries
const LOOK_AGAIN = 20_000; // ms while all is well

let failures = 0;
let timer: ReturnType<typeof setTimeout>;

/** Asks for the server's health now, and goes on asking. */
export async function look(): Promise<void> {
  clearTimeout(timer);
  const before = reach.peek();
  const state = (await health()) ?? "away";
  reach.value = state;
  if (state === "ok" && before !== "ok") void learn();
  failures = state === "away" ? failures + 1 : 0;
  const wait =
    state === "ok" ? LOOK_AGAIN : state !== "away" ? 1000 : 1000 * PATIENCE[Math.min(failures, PATIENCE.length) - 1]!;
  nextTry.value = Date.now() + wait;
  clearTimeout(timer);
  timer = setTimeout(() => void look(), wait);
}

/** A request found the server away: say so now, not at the next look. */
export function noticeAway(): void {
  if (reach.peek() !== "away") void look();
}

// A key that is given later opens what was closed at first.
apiKey.subscribe((key) => {
  if (key && reach.peek() === "ok" && !models.peek().length) void learn();
});

async function learn(): Promise<void> {
  try {
    models.value = (await get<{ data: Model[] }>("/v1/models")).data;
    await readSteering();
  } catch (error) {
    steeringProblem.value = error instanceof ServerError ? error.message : "The server's answer was not understood.";
  } finally {
    asked.value = true;
  }
}

const COMING: readonly (typeof reach.value)[] = ["unknown", "loading", "ok"];

/** Waits for the profiles of a page that has just been opened; not for a server that is away, or has failed. */
export function learnt(): Promise<void> {
  return new Promise((resolve) => {
    effect(function (this: { dispose(): void }) {
      if (!asked.value && COMING.includes(reach.value)) return;
      resolve();
      this.dispose();
    });
  });
}

export async function readSteering(): Promise<void> {
  const [all, state] = await Promise.all([
    get<{ profiles: Profile[] }>("/v1/steering/profiles"),
    get<SteeringState>("/v1/steering"),
  ]);
  profiles.value = all.profiles;
  defaults.value = state;
  steeringProblem.value = "";
}

export interface Setting {
  profile: Profile;
  on: boolean;
  strength: number;
  minimum: number; // of a required profile, else 0
}

const choice = computed<SteeringChoice>(() => choices.value[model.value?.id ?? ""] ?? { profiles: {} });

/** Every profile as the next message will use it. */
export const settings = computed<Setting[]>(() =>
  profiles.value.map((profile) => {
    const byDefault = defaults.value.profiles.find((p) => p.name === profile.name);
    const required = profile.required || defaults.value.required.includes(profile.name);
    const minimum = required ? (byDefault?.strength ?? profile.strength) : 0;
    const set = choice.value.profiles[profile.name];
    const strength = Math.max(set?.strength ?? byDefault?.strength ?? profile.strength, minimum);
    return { profile: { ...profile, required }, on: required || (set?.on ?? byDefault !== undefined), strength, minimum };
  }),
);

export const scope = computed(() => (choice.value.scope === undefined ? defaults.value.scope : choice.value.scope));
export const follows = computed(() => Object.keys(choice.value.profiles).length === 0 && choice.value.scope === undefined);

function choose(change: (old: SteeringChoice) => SteeringChoice): void {
  choices.value = { ...choices.value, [model.value?.id ?? ""]: change(choice.value) };
}

export function setProfile(name: string, part: Partial<{ on: boolean; strength: number }>): void {
  const now = settings.value.find((s) => s.profile.name === name);
  if (!now) return;
  const set = { on: now.on, strength: now.strength, ...part };
  choose((old) => ({ ...old, profiles: { ...old.profiles, [name]: set } }));
}

export function setScope(value: SteeringState["scope"]): void {
  choose((old) => ({ ...old, scope: value }));
}

export function followServer(): void {
  choose(() => ({ profiles: {} }));
}

/** Makes what is set here the server's defaults, for every client that sets nothing itself. */
export async function makeDefaults(): Promise<void> {
  const wanted = settings.value.filter((s) => s.on).map((s) => ({ name: s.profile.name, strength: s.strength }));
  defaults.value = await send<SteeringState>("PUT", "/v1/steering", { profiles: wanted, scope: scope.value });
  followServer();
}

/** What goes into a request; undefined where the server knows no profiles. */
export function steering(): SteeringRequest | false | undefined {
  if (!profiles.value.length) return undefined;
  const on = settings.value.filter((s) => s.on).map((s) => ({ name: s.profile.name, strength: s.strength }));
  return on.length ? { profiles: on, scope: scope.value, explain: true } : false;
}

/** The least steering that the server allows: none, or the required profiles at their minimum. */
export function leastSteering(): SteeringRequest | false {
  const must = settings.value.filter((s) => s.profile.required);
  if (!must.length) return false;
  const least = must.map((s) => ({ name: s.profile.name, strength: s.minimum }));
  return { profiles: least, scope: scope.value, explain: true };
}

export function kinds(): Record<string, string> {
  return Object.fromEntries(profiles.value.map((p) => [p.name, p.gate.kind]));
}
