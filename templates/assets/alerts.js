// The alerts page: made by the server; this adds theme, keys and the viewer's own clock.

import { startShell } from "./shell.js";
import { wordTimes } from "./clock.js";

startShell({ r: () => location.reload() });
wordTimes(document.body);
// As without script, but not while somebody fills in a form.
setInterval(() => {
  const busy = document.hidden || document.querySelector("details[open]") || document.activeElement?.closest("form");
  if (!busy) location.reload();
}, 10000);
