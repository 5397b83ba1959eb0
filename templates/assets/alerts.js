// Alerts page, rendered by the server; adds theme, keyboard shortcuts and local time.

import { startShell } from "./shell.js";
import { wordTimes } from "./clock.js";

startShell({ r: () => location.reload() });
wordTimes(document.body);
// Reload like the page without JavaScript, but not while the user fills in a form.
setInterval(() => {
  const busy = document.hidden || document.querySelector("details[open]") || document.activeElement?.closest("form");
  if (!busy) location.reload();
}, 10000);
