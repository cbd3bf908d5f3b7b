// One quiet line at the edge, for what happened and how to undo it.

import { signal } from "@preact/signals";

export interface Toast {
  text: string;
  action?: { label: string; run: () => void };
}

export const shown = signal<Toast | null>(null);

let timer: ReturnType<typeof setTimeout>;

export function toast(text: string, action?: Toast["action"]): void {
  clearTimeout(timer);
  shown.value = { text, action };
  timer = setTimeout(dismiss, 8000);
}

export function dismiss(): void {
  clearTimeout(timer);
  shown.value = null;
}
