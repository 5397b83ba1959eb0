// The page about the API: made by the server; this adds theme, keys and buttons that copy examples.

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
      // Not over an encrypted connection: it is selected all the same.
      button.textContent = "Selected";
    }
  });
  sample.append(button);
}
