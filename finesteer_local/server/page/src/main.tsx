import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./app";
import { look } from "./server";
import { onKey } from "./shortcuts";
import { current, openStore, titleOf } from "./store";
import "./styles/base.css";
import "./styles/controls.css";
import "./styles/layout.css";
import "./styles/chat.css";
import "./styles/prose.css";
import "./styles/panels.css";
import { focusComposer } from "./ui";

addEventListener("keydown", onKey);
effect(() => {
  const title = current.value && titleOf(current.value.value);
  document.title = title ? `${title} · FineSteer Local` : "FineSteer Local";
});

void look();
await openStore();
render(<App />, document.getElementById("page")!);
focusComposer();
