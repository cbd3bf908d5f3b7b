// What is open on the screen.

import { effect, signal } from "@preact/signals";
import { sidebarOpen } from "./settings";

export type PanelName = "steering" | "gate" | "settings";

export const panel = signal<PanelName | null>(null);
export const shortcutsOpen = signal(false);
/** On a narrow screen the list of conversations covers the rest; it is not open from the start. */
export const drawerOpen = signal(false);

const query = matchMedia("(max-width: 64rem)");
export const narrow = signal(query.matches);
query.addEventListener("change", () => (narrow.value = query.matches));

export const sidebarShown = (): boolean => (narrow.value ? drawerOpen.value : sidebarOpen.value);

let opener: HTMLElement | null = null;

export function togglePanel(name: PanelName): void {
  if (panel.peek() === name) return closePanel();
  if (panel.peek() === null) opener = document.activeElement as HTMLElement | null;
  panel.value = name;
}

export function closePanel(): void {
  panel.value = null;
  (opener?.isConnected ? opener : composer())?.focus();
}

export function toggleSidebar(): void {
  const shown = narrow.peek() ? drawerOpen : sidebarOpen;
  shown.value = !shown.peek();
}

export function composer(): HTMLTextAreaElement | null {
  return document.querySelector("#composer");
}

/** With a mouse and a keyboard at hand, typing goes on at once; on a phone it would raise the keyboard. */
export function focusComposer(): void {
  if (matchMedia("(hover: hover)").matches) requestAnimationFrame(() => composer()?.focus());
}

effect(() => {
  if (!narrow.value) drawerOpen.value = false;
});
