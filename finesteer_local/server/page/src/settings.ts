// What a person set, kept in localStorage: theme, sampling, steering.

import { effect, type Signal, signal } from "@preact/signals";
import type { Scope } from "./api";

export interface Sampling {
  temperature: number | null;
  top_p: number | null;
  max_tokens: number | null;
  seed: number | null;
}

/** What was set by hand for a model; a profile that is not here follows the server. */
export interface SteeringChoice {
  profiles: Record<string, { on: boolean; strength: number }>;
  scope?: Scope;
}

function kept<T>(name: string, initial: T): Signal<T> {
  const key = `finesteer.${name}`;
  let value = initial;
  try {
    const text = localStorage.getItem(key);
    const read: unknown = text === null ? null : JSON.parse(text);
    if (read !== null && typeof read === typeof initial) value = read as T;
  } catch {
    // unreadable: the initial value
  }
  const result = signal(value);
  let first = true;
  effect(() => {
    const text = JSON.stringify(result.value);
    if (first) first = false;
    else
      try {
        localStorage.setItem(key, text);
      } catch {
        // kept for this visit alone
      }
  });
  return result;
}

export type Theme = "system" | "light" | "dark";

export const NO_SAMPLING: Sampling = { temperature: null, top_p: null, max_tokens: null, seed: null };

export const theme = kept<Theme>("theme", "system");
export const sampling = kept<Sampling>("sampling", NO_SAMPLING);
export const defaultSystem = kept<string>("system", "");
export const modelId = kept<string>("model", "");
export const choices = kept<Record<string, SteeringChoice>>("steering", {});
export const sidebarOpen = kept<boolean>("sidebar", true);

effect(() => {
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
});
