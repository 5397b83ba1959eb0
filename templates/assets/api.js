// API page, rendered by the server; adds theme, keyboard shortcuts and copy buttons.

import { startShell } from "./shell.js";

startShell({});

for (const sample of document.querySelectorAll(".sample")) {
  const code = sample.querySelector("code");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // The clipboard is unavailable without HTTPS; the text is selected instead.
      button.textContent = "Selected";
    }
  });
  sample.append(button);
}
