// The API key: asked for when the server wants one, kept for this tab only.

import { signal } from "@preact/signals";

const NAME = "finesteer.key";

function stored(): string {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

export const apiKey = signal(stored());

/** Whoever waits for a key; null when nobody does. */
export const keyWanted = signal<{ wrong: boolean; answer: (key: string) => void } | null>(null);

let waiting: Promise<boolean> | null = null;

/** Asks for the key, once for all who wait; false where the person declines. */
export function askForKey(wrong: boolean): Promise<boolean> {
  waiting ??= new Promise<boolean>((resolve) => {
    keyWanted.value = {
      wrong,
      answer: (key) => {
        keyWanted.value = null;
        waiting = null;
        setKey(key);
        resolve(key !== "");
      },
    };
  });
  return waiting;
}

export function forgetKey(): void {
  setKey("");
}

function setKey(key: string): void {
  apiKey.value = key;
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // kept in memory alone
  }
}
